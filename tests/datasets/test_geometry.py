"""Transforms against pyquaternion and their own definitions."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bevstack.datasets import geometry

component = st.floats(-1, 1, allow_subnormal=False)
quaternion = (
    st.tuples(component, component, component, component)
    .map(np.array)
    .filter(lambda q: np.linalg.norm(q) > 0.1)
)


@given(quaternion)
def test_rotation_of_a_quaternion_is_a_rotation_and_comes_back(q):
    rotation = geometry.rotation_from_quaternion(q)
    np.testing.assert_allclose(rotation @ rotation.T, np.eye(3), atol=1e-12)
    assert np.linalg.det(rotation) == pytest.approx(1)
    again = geometry.rotation_from_quaternion(geometry.quaternion_from_rotation(rotation))
    np.testing.assert_allclose(again, rotation, atol=1e-7)


@given(quaternion)
def test_rotation_equals_pyquaternion(q):
    pyquaternion = pytest.importorskip("pyquaternion")
    expected = pyquaternion.Quaternion(q).rotation_matrix
    np.testing.assert_allclose(geometry.rotation_from_quaternion(q), expected, atol=1e-12)


@given(st.floats(-10, 10))
def test_yaw_survives_the_quaternion(yaw):
    rotation = geometry.rotation_from_quaternion(geometry.quaternion_from_yaw(yaw))
    difference = geometry.wrap_angle(geometry.yaw_of(rotation) - yaw)
    assert abs(difference) < 1e-9 or abs(abs(difference) - 2 * np.pi) < 1e-9


@given(st.floats(-1e3, 1e3))
def test_wrapped_angles_lie_in_the_half_open_interval(angle):
    wrapped = geometry.wrap_angle(np.array(angle))
    assert -np.pi <= wrapped < np.pi
    assert np.cos(wrapped - angle) == pytest.approx(1)


def test_inverse_undoes_a_transform():
    matrix = geometry.transform([0.5, 0.5, -0.5, 0.5], [1, 2, 3])
    points = np.random.default_rng(0).normal(size=(10, 3))
    moved = geometry.apply(matrix, points)
    np.testing.assert_allclose(geometry.apply(geometry.inverse(matrix), moved), points)


def test_an_angle_has_the_same_bits_wherever_its_numbers_lie():
    random = np.random.default_rng(0)
    rows = random.normal(size=(499, 17))
    first = geometry.angle_of(rows[:, 8].copy(), rows[:, 9].copy())
    assert abs(first - np.angle(rows[:, 9] + 1j * rows[:, 8])).max() < 1e-15
    kept = []
    for _ in range(500):
        kept = [*kept[-20:], np.empty(random.integers(1, 3000))]  # moves what comes after
        moved = rows.copy()
        assert np.array_equal(geometry.angle_of(moved[:, 8], moved[:, 9]), first)
    assert geometry.angle_of(np.array(0.0), np.array(-1.0)) == np.pi
