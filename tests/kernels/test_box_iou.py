"""Overlap of boxes against shapely."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings

pytest.importorskip("shapely")
from box_cases import box_pairs, by_shapely, random_boxes

from bevstack import kernels
from bevstack.kernels.box_iou import box_overlap_cpu, box_overlap_reference
from bevstack.kernels.numba_boxes import box_overlap
from bevstack.kernels.overlap import Overlap

MEASURES = {
    "intersection_area_bev": Overlap.BEV_AREA,
    "box_iou_bev": Overlap.BEV_IOU,
    "box_giou_bev": Overlap.BEV_GIOU,
    "box_iou": Overlap.IOU,
    "box_giou": Overlap.GIOU,
}
SQUARE = [0.0, 0, 0, 2, 2, 2, 0]


@pytest.mark.parametrize("extent", [3, 30])
@pytest.mark.parametrize("path", [box_overlap_cpu, box_overlap_reference])
@pytest.mark.parametrize("name", MEASURES)
def test_equals_shapely(name, path, extent):
    boxes, others = random_boxes(60, extent), random_boxes(50, extent, seed=1)
    got = path(boxes, others, MEASURES[name], False)
    assert got.shape == (60, 50)
    np.testing.assert_allclose(got, by_shapely(boxes, others)[name], atol=1e-9)
    rows = path(boxes[:50], others, MEASURES[name], True)
    np.testing.assert_allclose(rows, got[:50].diagonal(), atol=1e-12)


@settings(max_examples=200, deadline=None)
@given(box_pairs())
def test_boxes_that_meet_in_special_ways_equal_shapely(pair):
    for name, expected in by_shapely(*pair).items():
        if "giou" in name and min(box[0, 3:6].min() for box in pair) == 0:
            continue  # a hull without area or height, but for rounding
        for path in (box_overlap_cpu, box_overlap_reference):
            got = path(*pair, MEASURES[name], True)
            assert got.item() == pytest.approx(expected.item(), abs=1e-7), name


@pytest.mark.parametrize("angle", [0, 1, 2, 3])
@pytest.mark.parametrize("off", [0, 1e-15, 1e-13, 1e-11, 1e-8, 1e-5])
@pytest.mark.parametrize("path", [box_overlap_cpu, box_overlap_reference])
def test_nearly_right_angles_lose_no_digits(path, off, angle):
    """Once off by 0.97 square metres: the compiler had regrouped small differences."""
    boxes, others = random_boxes(40, 3), random_boxes(40, 3, seed=1)
    others[:, 6] = boxes[:, 6] + angle * math.pi / 2 + off
    got = path(boxes, others, Overlap.BEV_AREA, True)
    expected = by_shapely(boxes, others)["intersection_area_bev"].diagonal()
    np.testing.assert_allclose(got, expected, atol=1e-10)


@pytest.mark.parametrize("path", [box_overlap_cpu, box_overlap_reference])
def test_float32_far_from_the_origin_equals_shapely(path):
    boxes = random_boxes(60, 4, at=2000.0).float()
    others = random_boxes(60, 4, seed=1, at=2000.0).float()
    for name, expected in by_shapely(boxes, others).items():
        if name != "intersection_area_bev":
            got = path(boxes, others, MEASURES[name], False)
            assert got.dtype == torch.float32
            np.testing.assert_allclose(got, expected, atol=1e-5)


@pytest.mark.parametrize(
    ("other", "area"),
    [
        (SQUARE, 4),
        ([0, 0, 0, 2, 2, 2, math.pi], 4),
        ([0, 0, 0, 2, 2, 2, math.pi / 4], 8 * (math.sqrt(2) - 1)),  # a regular octagon
        ([0, 0, 0, 1, 1, 1, 0.3], 1),  # inside
        ([2, 0, 0, 2, 2, 2, 0], 0),  # side by side
        ([2, 2, 0, 2, 2, 2, 0], 0),  # corner to corner
        ([1, 0, 0, math.sqrt(2), math.sqrt(2), 1, math.pi / 4], 1),  # corners on edges
        ([0, 0, 0, 0, 0, 0, 0], 0),
        ([0, 0, 0, 9, 0, 2, 0.5], 0),
        ([0, 0, 0, -1, 2, 2, 0], 0),
    ],
)
def test_special_cases(other, area):
    pair = torch.tensor([SQUARE]), torch.tensor([other], dtype=torch.float32)
    for boxes, others in (pair, pair[::-1]):
        assert kernels.intersection_area_bev(boxes, others).item() == pytest.approx(area, abs=1e-6)


def test_equal_boxes_have_iou_and_giou_one():
    boxes = random_boxes(200, 50)
    for measure in (kernels.box_iou, kernels.box_iou_bev, kernels.box_giou, kernels.box_giou_bev):
        ones = measure(boxes, boxes, aligned=True)
        torch.testing.assert_close(ones, torch.ones(200, dtype=torch.float64), atol=1e-12, rtol=0)
        assert (ones <= 1).all()


def test_giou_falls_with_distance():
    boxes = torch.tensor([SQUARE]).repeat(5, 1)
    boxes[:, 0] = torch.tensor([0.0, 1, 4, 40, 4e6])
    giou = kernels.box_giou_bev(boxes[:1], boxes)[0]
    assert (giou.diff() < 0).all()
    assert giou[-1].item() == pytest.approx(-1, abs=1e-5)


def test_boxes_that_are_not_finite_or_have_no_size_overlap_nothing():
    boxes = torch.tensor([SQUARE]).repeat(8, 1)
    for k in range(7):
        boxes[k, k] = (torch.nan, torch.inf)[k % 2]
    boxes[7, 3:6] = 0
    for name, overlap in MEASURES.items():
        if overlap != Overlap.GIOU and overlap != Overlap.BEV_GIOU:
            assert not getattr(kernels, name)(boxes, torch.tensor([SQUARE])).any()
    zero = boxes[7:]
    for name in MEASURES:
        assert getattr(kernels, name)(zero, zero).item() == 0
    for name, overlap in MEASURES.items():
        got = getattr(kernels, name)(boxes, boxes)
        assert got.isfinite().all()
        assert torch.equal(got, box_overlap_reference(boxes, boxes, overlap))


@pytest.mark.parametrize(("M", "L"), [(0, 0), (0, 3), (3, 0)])
def test_no_box(M, L):
    for name in MEASURES:
        assert getattr(kernels, name)(random_boxes(M), random_boxes(L)).shape == (M, L)
    assert kernels.box_iou(random_boxes(0), random_boxes(0), aligned=True).shape == (0,)


def test_threads_do_not_change_a_bit_and_inputs_stay():
    boxes = random_boxes(300)
    before = boxes.clone()
    one, many = (box_overlap(boxes.numpy(), boxes.numpy(), Overlap.GIOU, False, n) for n in (1, 5))
    assert (one == many).all()
    assert torch.equal(boxes, before)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_result_is_at_least_float32_and_carries_no_gradient(dtype):
    boxes = random_boxes(3).to(dtype).requires_grad_()
    iou = kernels.box_iou(boxes, boxes)
    assert iou.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    assert not iou.requires_grad


def test_registration():
    boxes = random_boxes(4)
    for aligned in (True, False):
        args = boxes, boxes, int(Overlap.IOU), aligned
        torch.library.opcheck(torch.ops.bevstack.box_overlap.default, args)


def test_bad_shapes_are_told():
    boxes = random_boxes(4)
    with pytest.raises(ValueError, match=r"others must be \(M, 7\)"):
        kernels.box_iou(boxes, boxes[:, :5])
    with pytest.raises(ValueError, match="row by row"):
        kernels.box_iou(boxes, boxes[:3], aligned=True)
