"""Points in boxes against the nuScenes devkit and the definition."""

import numpy as np
import pytest
import torch
from box_cases import random_boxes
from hypothesis import given, settings
from hypothesis import strategies as st

from bevstack.kernels import count_points_in_boxes, points_in_boxes
from bevstack.kernels.numba_points_in_boxes import count_points_in_boxes as count_numba
from bevstack.kernels.numba_points_in_boxes import points_in_boxes as find_numba
from bevstack.kernels.points_in_boxes import inside_reference


def points_around(count, extent=8.0, seed=0):
    return torch.from_numpy(np.random.default_rng(seed).uniform(-extent, extent, (count, 3)))


def first_of(inside):
    return torch.where(inside.any(1), inside.int().argmax(1), -1)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10**6), st.integers(0, 300), st.integers(0, 12), st.sampled_from([3, 5]))
def test_matches_the_definition(seed, P, M, columns):
    points, boxes = points_around(P, 4, seed), random_boxes(M, 4, seed)
    inside = inside_reference(points, boxes)
    assert inside.shape == (P, M)
    points = torch.cat([points, points.new_zeros(P, 2)], 1)[:, :columns]
    assert torch.equal(count_points_in_boxes(points, boxes), inside.sum(0))
    if M:
        assert torch.equal(points_in_boxes(points, boxes), first_of(inside))
    else:
        assert (points_in_boxes(points, boxes) == -1).all()


def test_matches_the_devkit():
    Box = pytest.importorskip("nuscenes.utils.data_classes").Box
    from nuscenes.utils.geometry_utils import points_in_box
    from pyquaternion import Quaternion

    points, boxes = points_around(3000), random_boxes(25)
    inside = []
    for x, y, z, length, width, height, yaw in boxes.tolist():
        turn = Quaternion(axis=[0, 0, 1], radians=yaw)
        box = Box([x, y, z], [width, length, height], turn)
        inside.append(points_in_box(box, points.T.numpy()))
    inside = torch.from_numpy(np.stack(inside, 1))
    assert 200 < inside.sum() < inside.numel() / 2
    assert torch.equal(count_points_in_boxes(points, boxes), inside.sum(0))
    assert torch.equal(points_in_boxes(points, boxes), first_of(inside))


def test_the_surface_is_inside_and_the_first_box_wins():
    boxes = torch.tensor([[0.0, 0, 0, 4, 2, 2, 0], [2.0, 0, 0, 4, 2, 2, 0]])
    points = torch.tensor([[2.0, 1, 1], [-2, -1, -1], [4, 0, 0], [2.001, 0, 0], [4.001, 0, 0]])
    assert points_in_boxes(points, boxes).tolist() == [0, 0, 1, 1, -1]
    assert count_points_in_boxes(points, boxes).tolist() == [2, 3]


def test_float32_far_from_the_origin():
    boxes = random_boxes(5)
    points = points_around(500)
    expected = points_in_boxes(points, boxes)
    boxes[:, :2] += 2.0**17  # float32 is 1/64 apart there, so neither is exact
    points[:, :2] += 2.0**17
    assert (expected != points_in_boxes(points.float(), boxes.float())).float().mean() < 0.05
    moved = points_in_boxes(points, boxes)
    assert torch.equal(moved, expected)


def test_no_number_is_in_no_box():
    boxes = random_boxes(1).repeat(4, 1)
    boxes[0, 0], boxes[1, 3], boxes[2, 6] = torch.nan, torch.inf, torch.nan
    points = boxes[3:, :3].repeat(2, 1)
    points[1, 2] = torch.nan
    assert points_in_boxes(points, boxes).tolist() == [3, -1]
    assert count_points_in_boxes(points, boxes).tolist() == [0, 0, 0, 1]
    assert inside_reference(points, boxes).sum() == 1


def test_threads_do_not_change_the_result():
    points, boxes = points_around(5000).float().numpy(), random_boxes(30).numpy()
    for work in (count_numba, find_numba):
        assert (work(points, boxes, 1) == work(points, boxes, 4)).all()


def test_bad_shapes_are_told():
    for points, boxes in ((torch.ones(3, 2), torch.ones(1, 7)), (torch.ones(3, 3), torch.ones(7))):
        for call in (points_in_boxes, count_points_in_boxes):
            with pytest.raises(ValueError, match="expected points"):
                call(points, boxes)


def test_registration():
    args = points_around(9), random_boxes(2)
    torch.library.opcheck(torch.ops.bevstack.points_in_boxes.default, args)
    torch.library.opcheck(torch.ops.bevstack.count_points_in_boxes.default, args)
