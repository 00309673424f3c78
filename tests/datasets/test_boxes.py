"""Boxes against the devkit's and against closed forms."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bevstack.datasets import geometry
from bevstack.datasets.boxes import Boxes3D


def random_boxes(seed: int, count: int = 20) -> Boxes3D:
    rng = np.random.default_rng(seed)
    return Boxes3D(
        center=rng.uniform(-50, 50, (count, 3)),
        size=rng.uniform(0.3, 12, (count, 3)),
        yaw=rng.uniform(-np.pi, np.pi, count),
        velocity=rng.normal(size=(count, 2)),
        label=rng.integers(0, 10, count),
    )


def test_corners_are_those_of_the_devkit():
    devkit = pytest.importorskip("nuscenes.utils.data_classes")
    quaternions = pytest.importorskip("pyquaternion")
    boxes = random_boxes(0)
    for box, expected in zip(range(len(boxes)), boxes.corners()):
        length, width, height = boxes.size[box]
        rotation = quaternions.Quaternion(axis=[0, 0, 1], angle=boxes.yaw[box])
        theirs = devkit.Box(boxes.center[box], [width, length, height], rotation).corners().T
        distance = np.linalg.norm(theirs[:, None] - expected[None], axis=-1)
        assert distance.min(0).max() < 1e-9  # the order of corners is each project's own


@given(
    st.integers(0, 100), st.floats(-3, 3), st.floats(0.8, 1.2), st.sampled_from([1, -1]),
    st.sampled_from([1, -1]),
)  # fmt: skip
def test_box_corners_move_as_points_do(seed, angle, scale, mirror_x, mirror_y):
    boxes = random_boxes(seed)
    target_from_source = geometry.transform(geometry.quaternion_from_yaw(angle), [1.0, -2.0, 0.5])
    target_from_source[:3, :3] *= scale
    target_from_source = np.diag([mirror_x, mirror_y, 1, 1]) @ target_from_source
    moved = boxes.transformed(target_from_source)
    expected = geometry.apply(target_from_source, boxes.corners())
    distance = np.linalg.norm(moved.corners()[:, :, None] - expected[:, None], axis=-1)
    assert distance.min(1).max() < 1e-9
    tip = boxes.center.copy()
    tip[:, :2] += boxes.velocity
    shift = geometry.apply(target_from_source, tip) - moved.center
    np.testing.assert_allclose(moved.velocity, shift[:, :2], atol=1e-9)


def test_selecting_keeps_the_order_and_no_box_is_legal():
    boxes = random_boxes(1)
    np.testing.assert_array_equal(boxes[np.array([3, 1])].center, boxes.center[[3, 1]])
    assert len(Boxes3D.empty()) == len(Boxes3D.empty().transformed(np.eye(4))) == 0


def test_a_wrong_shape_is_named():
    with pytest.raises(ValueError, match=r"boxes\.size is \(2, 3\)"):
        Boxes3D(np.zeros((1, 3)), np.zeros((2, 3)), np.zeros(1), np.zeros((1, 2)), np.zeros(1))
