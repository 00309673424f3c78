"""Triton kernels for boxes, in Triton's interpreter.

The tests of this file need TRITON_INTERPRET=1 when the kernels are defined, so the first one runs
the file once more in a process of its own; there the others are no longer left out. Fresh memory is
filled with NaN (integers with their maximum), so that a forgotten store shows.
"""

import math
import os
import subprocess
import sys

import pytest
import torch

pytest.importorskip("triton")
pytest.importorskip("shapely")
from box_cases import by_shapely, random_boxes
from triton.runtime import interpreter

from bevstack.kernels import triton_boxes
from bevstack.kernels.box_iou import box_overlap_reference, box_overlap_triton, columns
from bevstack.kernels.nms import (
    circle_nms_reference,
    circle_nms_triton,
    nms_reference,
    nms_triton,
)
from bevstack.kernels.overlap import Overlap
from bevstack.kernels.points_in_boxes import inside_reference
from bevstack.kernels.triton_nms import MOST_BOXES, keep_by_distance

INTERPRETED = isinstance(triton_boxes.overlap_kernel, interpreter.InterpretedFunction)
interpreted = pytest.mark.skipif(not INTERPRETED, reason="run by the first test of this file")


@pytest.mark.slow
@pytest.mark.skipif(INTERPRETED, reason="this is the process that it starts")
def test_kernels_in_the_interpreter():
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-n", "0", __file__],
        env={**os.environ, "TRITON_INTERPRET": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert " passed" in done.stdout or "100%" in done.stdout


@pytest.fixture(autouse=True, scope="module")
def _poisoned_memory():
    if not INTERPRETED:
        yield
        return
    with pytest.MonkeyPatch.context() as patch:
        # Triton 3.6 makes a loop's bound of an array of one element, as numpy 2.4 no longer does.
        prepare = interpreter._patch_lang_tensor

        def prepare_with_index(tensor, *scope):
            prepare(tensor, *scope)
            tensor.__index__ = lambda self: int(self.handle.data.squeeze())

        patch.setattr(interpreter, "_patch_lang_tensor", prepare_with_index)
        torch.use_deterministic_algorithms(True)
        torch.utils.deterministic.fill_uninitialized_memory = True
        assert torch.empty(3).isnan().all()
        yield
        torch.use_deterministic_algorithms(False)


# --- Overlap --------------------------------------------------------------------------------------


@interpreted
@pytest.mark.parametrize("aligned", [False, True])
@pytest.mark.parametrize("overlap", Overlap)
def test_overlap_matches_the_definition(overlap, aligned):
    boxes = random_boxes(12, 3)
    others = random_boxes(12 if aligned else 150, 3, seed=1)
    boxes[2], others[3, 3:5], others[5, 0] = others[1], 0, torch.nan
    expected = box_overlap_reference(boxes, others, overlap, aligned)
    got = box_overlap_triton(boxes, others, overlap, aligned)
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-12)
    single = box_overlap_triton(boxes.float(), others.float(), overlap, aligned)
    assert single.dtype == torch.float32
    torch.testing.assert_close(single.double(), expected, rtol=0, atol=1e-4)


@interpreted
def test_iou_in_float32_far_from_the_origin_equals_shapely():
    boxes = random_boxes(20, 4, at=2000.0).float()
    others = random_boxes(40, 4, seed=1, at=2000.0).float()
    expected = by_shapely(boxes, others)
    for name, overlap in (("box_iou", Overlap.IOU), ("box_giou_bev", Overlap.BEV_GIOU)):
        got = box_overlap_triton(boxes, others, overlap, False)
        torch.testing.assert_close(
            got.double(), torch.from_numpy(expected[name]), rtol=0, atol=1e-5
        )


@interpreted
@pytest.mark.parametrize("off", [0, 1e-7, 1e-6, 1e-5])
def test_nearly_right_angles_lose_no_digits(off):
    boxes, others = random_boxes(40, 3).float(), random_boxes(40, 3, seed=1).float()
    others[:, 6] = boxes[:, 6] + math.pi / 2 + off
    got = box_overlap_triton(boxes, others, Overlap.BEV_IOU, True)
    expected = box_overlap_reference(boxes.double(), others.double(), Overlap.BEV_IOU, True)
    torch.testing.assert_close(got.double(), expected, rtol=0, atol=1e-5)


@interpreted
@pytest.mark.parametrize(("M", "L"), [(0, 0), (0, 3), (3, 0)])
def test_no_box(M, L):
    for overlap in Overlap:
        got = box_overlap_triton(random_boxes(M), random_boxes(L), overlap, False)
        assert got.shape == (M, L)


# --- Suppression ----------------------------------------------------------------------------------


def scored(count, num_labels, num_samples):
    random = torch.Generator().manual_seed(count)
    scores = torch.randint(0, 50, (count,), generator=random) / 50  # with ties
    labels = torch.randint(0, num_labels, (count,), generator=random)
    return scores, labels, torch.randint(0, num_samples, (count,), generator=random) * 7


@interpreted
@pytest.mark.parametrize("groups", [(1, 1), (3, 2), (40, 3)])
@pytest.mark.parametrize("count", [0, 1, 63, 64, 65, 200])
def test_suppression_matches_the_definition(count, groups):
    boxes = random_boxes(count, 12)
    scores, labels, samples = scored(count, *groups)
    for max_kept in (None, 3):
        rest = labels, samples, max_kept
        expected = nms_reference(boxes, scores, 0.1, *rest)
        assert torch.equal(nms_triton(boxes, scores, 0.1, *rest), expected)
        circle = boxes, scores, boxes[:, 4], *rest
        assert torch.equal(circle_nms_triton(*circle), circle_nms_reference(*circle))


@interpreted
def test_without_groups_and_with_a_chain_through_every_word():
    """Each box is near the next: every second one stays, as many rounds as there are boxes."""
    centers = torch.arange(150.0)[:, None].repeat(1, 2) * math.sqrt(0.5)
    scores = torch.linspace(1, 0, 150)
    kept = circle_nms_triton(centers, scores, torch.full((150,), 1.5), None, None, None)
    assert kept.tolist() == list(range(0, 150, 2))


@interpreted
def test_more_boxes_than_fit_are_told():
    group = torch.zeros(1, dtype=torch.int32).expand(MOST_BOXES + 1)
    with pytest.raises(ValueError, match="leave those with the lowest scores out"):
        keep_by_distance(torch.zeros(MOST_BOXES + 1, 3), group)


# --- Points ---------------------------------------------------------------------------------------


@interpreted
@pytest.mark.parametrize(("P", "M"), [(0, 3), (5, 0), (300, 9), (1500, 2)])
def test_points_in_boxes_match_the_definition(P, M):
    points = torch.rand(P, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    points, boxes = (points - 0.5) * 8, random_boxes(M, 4)
    if M > 3:
        boxes[1, 3] = torch.inf
    inside = inside_reference(points, boxes)
    args = points.T.contiguous(), columns(boxes)
    assert torch.equal(triton_boxes.count_points(*args), inside.sum(0))
    first = torch.full((P,), -1)
    if M:
        first = torch.where(inside.any(1), inside.int().argmax(1), first)
    assert torch.equal(triton_boxes.find_box(*args), first)
