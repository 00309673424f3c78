"""Inverses in closed form against LAPACK's."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bevstack.datasets.geometry import transform
from bevstack.kernels.inverse import inverse_3x3, inverse_affine

numbers = st.floats(-1, 1)


@given(st.lists(numbers, min_size=4, max_size=4), st.lists(numbers, min_size=3, max_size=3))
def test_transforms_far_from_the_origin(quaternion, place):
    w, x, y, z = quaternion
    matrix = transform([2 + w, x, y, z], 1e4 * np.array(place))
    matrix[:3, :3] *= [0.9, -1.1, 1.05]  # augmentation scales and mirrors
    found = inverse_affine(matrix)
    np.testing.assert_allclose(found, np.linalg.inv(matrix), rtol=1e-12, atol=1e-10)
    np.testing.assert_array_equal(found[3], [0, 0, 0, 1])


def test_intrinsics_in_a_batch():
    intrinsics = np.array([[[1266.4, 0, 816.3], [0, 1266.4, 491.5], [0, 0, 1]]] * 6)
    intrinsics[1, 0, 1] = 3.0
    intrinsics[2, 1, 1] *= -1
    found = inverse_3x3(intrinsics.reshape(2, 3, 3, 3))
    expected = np.linalg.inv(intrinsics).reshape(2, 3, 3, 3)
    np.testing.assert_allclose(found, expected, rtol=1e-13, atol=1e-16)


@pytest.mark.parametrize("value", [0.0, np.nan, np.inf])
def test_a_matrix_without_an_inverse_is_refused(value):
    matrix = np.eye(4)
    matrix[1, 1] = value
    with pytest.raises(np.linalg.LinAlgError, match="no inverse"):
        inverse_affine(matrix)
