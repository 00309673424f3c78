"""Box operations on a GPU: checked against the definitions, then timed beside them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from torch import Tensor

from bevstack.kernels import box_iou, circle_nms, nms, points_in_boxes
from bevstack.kernels.box_iou import box_overlap_reference, columns
from bevstack.kernels.nms import (
    circle_nms_reference,
    circle_nms_triton,
    nms_reference,
    nms_triton,
)
from bevstack.kernels.overlap import Overlap
from bevstack.kernels.points_in_boxes import inside_reference
from bevstack.kernels.triton_boxes import box_overlap, count_points, find_box

from .checks import DTYPES, Check, check, poisoned_memory
from .timing import Clock, Timing

OVERLAPS = (Overlap.IOU, Overlap.BEV_IOU, Overlap.BEV_AREA)
THRESHOLD, RADIUS = 0.3, 2.0


def checks(device: str, data: Path, dtypes: Sequence[torch.dtype] = DTYPES) -> Iterator[Check]:
    """Overlaps, suppression, and points in boxes; on a GPU 1,000 boxes as users call them."""
    boxes, scores, labels, batch = crowd(24 if device == "cpu" else 1000, device)
    half = len(boxes) // 2
    for overlap in OVERLAPS:
        for aligned in (False, True):
            first, second = (boxes, boxes[::3]) if not aligned else (boxes[:half], boxes[half:])
            if aligned:
                second = second[:half]
            exact = box_overlap_reference(first.double(), second.double(), overlap, aligned)
            with poisoned_memory():
                got = box_overlap(columns(first), columns(second), overlap, aligned)
            name = f"box overlap, {overlap.name.lower()}"
            yield check(name, "aligned" if aligned else "all pairs", got, exact)
    for keys in ((None, None), (labels, batch)):
        case = "one class" if keys[0] is None else "classes and samples"
        for most in (None, 7):
            cut = case if most is None else f"{case}, {most} kept"
            with poisoned_memory():
                kept = nms_triton(boxes, scores, THRESHOLD, *keys, most)
                near = circle_nms_triton(boxes, scores, _radius(boxes), *keys, most)
            exact = nms_reference(boxes.double(), scores, THRESHOLD, *keys, most)
            yield check("nms", cut, kept, exact)
            exact = circle_nms_reference(boxes, scores, _radius(boxes), *keys, most)
            yield check("circle_nms", cut, near, exact)
    points = cloud(boxes, 100 if device == "cpu" else 100_000)
    inside = inside_reference(points.double(), boxes.double())
    rows = points[:, :3].T.contiguous()
    with poisoned_memory():
        found, counts = find_box(rows, columns(boxes)), count_points(rows, columns(boxes))
    first = inside.int().argmax(1).where(inside.any(1), -1)
    yield check("points in boxes, first", "crowd", found, first)
    yield check("points in boxes, counts", "crowd", counts, inside.sum(0))


def crowd(count: int, device: str) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Boxes that overlap, with scores, labels and samples."""
    random = torch.Generator().manual_seed(0)
    place = torch.rand(count, 3, generator=random) * torch.tensor([100.0, 100.0, 2.0]) - 50
    place[count // 2 :] = place[: count - count // 2] + torch.randn(
        count - count // 2, 3, generator=random
    )
    size = torch.rand(count, 3, generator=random) * torch.tensor([9.0, 2.0, 2.0]) + 0.5
    yaw = torch.rand(count, 1, generator=random) * 6.28
    boxes = torch.cat([place, size, yaw], 1)
    # Exact in binary, so that ties are ties.
    scores = torch.randint(0, 256, (count,), generator=random) / 256
    labels = torch.randint(0, 10, (count,), generator=random)
    batch = torch.randint(0, 2, (count,), generator=random)
    return boxes.to(device), scores.to(device), labels.to(device), batch.to(device)


def cloud(boxes: Tensor, count: int) -> Tensor:
    """Points about the boxes, none within rounding of a surface."""
    random = torch.Generator().manual_seed(1)
    box = boxes.cpu()[torch.randint(0, len(boxes), (count,), generator=random)]
    points = box[:, :3] + torch.randn(count, 3, generator=random) * box[:, 3:6]
    points = points.to(boxes.device)
    grown, shrunk = boxes.clone(), boxes.clone()
    grown[:, 3:6] += 1e-3
    shrunk[:, 3:6] -= 1e-3
    sure = inside_reference(points, grown) == inside_reference(points, shrunk)
    return points[sure.all(1)]


def _radius(boxes: Tensor) -> Tensor:
    return torch.full_like(boxes[:, 0], RADIUS)


def timings(clock: Clock, bandwidth: float, data: Path) -> Iterator[Timing]:
    """1,000 boxes, as many as a head gives before suppression, and 250,000 points."""
    boxes, scores, labels, _ = crowd(1000, "cuda")
    task = "IoU of 1,000 x 1,000 boxes"
    iou = Overlap.IOU
    yield clock.time(task, "torch, all pairs", lambda: box_overlap_reference(boxes, boxes, iou))
    yield clock.time(task, "ours", lambda: box_iou(boxes, boxes))
    task = "nms of 1,000 boxes"
    args = boxes, scores, THRESHOLD, labels
    yield clock.time(task, "torch, a loop over the boxes", lambda: nms_reference(*args))
    yield clock.time(task, "ours", lambda: nms(*args))
    task = "circle nms of 1,000 boxes"
    discs = boxes, scores, _radius(boxes), labels
    yield clock.time(task, "torch, a loop over the boxes", lambda: circle_nms_reference(*discs))
    yield clock.time(task, "ours", lambda: circle_nms(*discs))
    points, few = cloud(boxes[:100], 250_000), boxes[:100]
    task = f"{len(points):,} points in 100 boxes"
    yield clock.time(task, "torch, all pairs", lambda: inside_reference(points, few).any(1))
    yield clock.time(task, "ours", lambda: points_in_boxes(points, few))
