"""Greedy non-maximum suppression by overlap (``nms``) or by distance (``circle_nms``).

    From the best score down, a box stays unless one that stays, of its sample and label, is too
    near: BEV IoU > threshold, or distance of centres <= mean of the two radii.

Ties in score go by input order, and no number counts as the worst score. One pass serves any number
of samples and labels: boxes are sorted by sample, label and score. On the CPU numba sweeps every
run of one sample and label; on a GPU one kernel writes who would suppress whom as bits, and one
program sweeps over them. There the host waits once, for the number of boxes that stay.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .box_iou import box_overlap_reference, columns
from .overlap import Overlap

# --- Definition -----------------------------------------------------------------------------------


def nms_reference(
    boxes: Tensor,
    scores: Tensor,
    iou_threshold: float,
    labels: Tensor | None = None,
    batch_index: Tensor | None = None,
    max_kept: int | None = None,
) -> Tensor:
    """The definition of :func:`nms`: plain PyTorch, a loop over the boxes."""
    near = box_overlap_reference(boxes, boxes, Overlap.BEV_IOU) > iou_threshold
    return _greedy(near, scores, labels, batch_index, max_kept)


def circle_nms_reference(
    centers: Tensor,
    scores: Tensor,
    radius: Tensor,
    labels: Tensor | None = None,
    batch_index: Tensor | None = None,
    max_kept: int | None = None,
) -> Tensor:
    """The definition of :func:`circle_nms`: plain PyTorch, a loop over the boxes."""
    offset = centers[:, None, :2] - centers[None, :, :2]
    near = (offset**2).sum(-1) <= ((radius[:, None] + radius) / 2) ** 2
    return _greedy(near, scores, labels, batch_index, max_kept)


def _greedy(near: Tensor, scores, labels, batch_index, max_kept) -> Tensor:
    for key in (labels, batch_index):
        if key is not None:
            near = near & (key[:, None] == key)
    keep = torch.ones(len(scores), dtype=torch.bool, device=scores.device)
    for i in _falling(scores).tolist():
        if keep[i]:
            keep &= ~near[i]
            keep[i] = True
    return _in_order(keep, scores, batch_index, max_kept)


def _falling(scores: Tensor) -> Tensor:
    """Rows by falling score, ties by input order."""
    scores = scores.masked_fill(scores.isnan(), -torch.inf)
    return scores.sort(descending=True, stable=True).indices


def _in_order(
    keep: Tensor, scores: Tensor, batch_index: Tensor | None, max_kept: int | None
) -> Tensor:
    """Rows that stay, by sample and falling score, at most ``max_kept`` of a sample."""
    order = _falling(scores)
    if batch_index is not None:
        order = order[batch_index[order].sort(stable=True).indices]
    kept = keep[order]
    if max_kept is not None:
        before = kept.cumsum(0) - kept.long()  # how many of all samples stay before this one
        if batch_index is not None:
            sample = batch_index[order]
            before = before - before[torch.searchsorted(sample, sample)]
        kept = kept & (before < max_kept)
    return order[kept]


# --- GPU ------------------------------------------------------------------------------------------


def nms_triton(
    boxes: Tensor,
    scores: Tensor,
    iou_threshold: float,
    labels: Tensor | None,
    batch_index: Tensor | None,
    max_kept: int | None,
) -> Tensor:
    """Suppression by overlap, made by Triton."""
    from .triton_nms import keep_by_iou

    order, group = _grouped(scores, labels, batch_index)
    keep = keep_by_iou(columns(boxes[order]), group, iou_threshold)
    return _in_order(torch.empty_like(keep).scatter(0, order, keep), scores, batch_index, max_kept)


def circle_nms_triton(
    centers: Tensor,
    scores: Tensor,
    radius: Tensor,
    labels: Tensor | None,
    batch_index: Tensor | None,
    max_kept: int | None,
) -> Tensor:
    """Suppression by distance, made by Triton."""
    from .triton_nms import keep_by_distance

    order, group = _grouped(scores, labels, batch_index)
    dtype = torch.promote_types(torch.promote_types(centers.dtype, radius.dtype), torch.float32)
    discs = torch.cat([centers[:, :2], radius[:, None]], 1).to(dtype)
    keep = keep_by_distance(discs[order], group)
    return _in_order(torch.empty_like(keep).scatter(0, order, keep), scores, batch_index, max_kept)


def _grouped(
    scores: Tensor, labels: Tensor | None, batch_index: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Rows by sample, label and falling score, and the number of each one's group: (M,) both."""
    order = _falling(scores)
    change = torch.zeros_like(order)
    keys = [key for key in (labels, batch_index) if key is not None]
    for key in keys:
        order = order[key[order].sort(stable=True).indices]
    for key in keys:
        change[1:] |= (key[order].diff() != 0).long()
    return order, change.cumsum(0).int()


# --- CPU, torch.library ---------------------------------------------------------------------------


@torch.library.custom_op("bevstack::nms", mutates_args=(), device_types="cpu")
def _nms(
    boxes: Tensor,
    scores: Tensor,
    iou_threshold: float,
    labels: Tensor | None,
    batch_index: Tensor | None,
    max_kept: int | None,
) -> Tensor:
    from .numba_nms import nms  # here: numba takes a second to import, a GPU needs none

    groups = [None if key is None else key.numpy() for key in (labels, batch_index)]
    args = boxes.double().numpy(), scores.double().numpy(), iou_threshold, *groups
    kept = nms(*args, max_kept=max_kept, num_threads=torch.get_num_threads())
    return torch.from_numpy(kept)


@torch.library.custom_op("bevstack::circle_nms", mutates_args=(), device_types="cpu")
def _circle_nms(
    centers: Tensor,
    scores: Tensor,
    radius: Tensor,
    labels: Tensor | None,
    batch_index: Tensor | None,
    max_kept: int | None,
) -> Tensor:
    from .numba_nms import circle_nms

    groups = [None if key is None else key.numpy() for key in (labels, batch_index)]
    floats = [tensor.double().numpy() for tensor in (centers, scores, radius)]
    kept = circle_nms(*floats, *groups, max_kept=max_kept, num_threads=torch.get_num_threads())
    return torch.from_numpy(kept)


_nms.register_kernel("cuda")(nms_triton)
_circle_nms.register_kernel("cuda")(circle_nms_triton)


@_nms.register_fake
@_circle_nms.register_fake
def _(boxes, scores, threshold, labels, batch_index, max_kept):
    kept = torch.library.get_ctx().new_dynamic_size()
    return boxes.new_empty(kept, dtype=torch.int64)


# --- Public ---------------------------------------------------------------------------------------


def nms(
    boxes: Tensor,
    scores: Tensor,
    iou_threshold: float,
    labels: Tensor | None = None,
    batch_index: Tensor | None = None,
    max_kept: int | None = None,
) -> Tensor:
    """Suppress boxes that overlap a better one on the ground; deterministic, no gradient.

    Args:
        boxes: (M, 7) float: x, y, z of the middle, length, width, height in metres, yaw. A box
            that is not finite overlaps none.
        scores: (M,) float.
        iou_threshold: a box goes if its BEV IoU with a better one that stays is greater; 0 to 1.
            At 0 even rounding counts: boxes that only touch may go.
        labels: (M,) int64; boxes of different labels do not see each other.
        batch_index: (M,) int64, the sample of each box; samples do not see each other.
        max_kept: most boxes of a sample that stay, of all labels together, the best.

    Returns:
        (S,) int64 rows that stay, by sample, then by falling score, then by input order.

    Raises:
        ValueError: if the shapes do not fit, the threshold is not in 0 to 1, or ``max_kept`` is
            negative.
    """
    _check(boxes, 7, scores, labels, batch_index, max_kept)
    if boxes.shape[1] != 7:
        raise ValueError(f"boxes must be (M, 7), not {tuple(boxes.shape)}")
    if not 0 <= iou_threshold <= 1:
        raise ValueError(f"iou_threshold is {iou_threshold}; it must be in 0 to 1")
    args = boxes.detach(), scores.detach(), iou_threshold, labels, batch_index, max_kept
    return _nms(*args)


def circle_nms(
    centers: Tensor,
    scores: Tensor,
    radius: float | Tensor,
    labels: Tensor | None = None,
    batch_index: Tensor | None = None,
    max_kept: int | None = None,
) -> Tensor:
    """Suppress boxes whose centre is near that of a better one; deterministic, no gradient.

    As CenterPoint's circle NMS (Yin et al., CVPR 2021), but with metres: its ``min_radius`` is
    compared with the squared distance, so that its 4 is ``radius=2`` here.

    Args:
        centers: (M, 2 or more) float, x, y first, metres.
        scores: (M,) float.
        radius: a box goes if the distance to a better one that stays is at most this; metres. Or
            (M,), one for each box: then the mean of the two counts.
        labels: (M,) int64; boxes of different labels do not see each other.
        batch_index: (M,) int64, the sample of each box; samples do not see each other.
        max_kept: most boxes of a sample that stay, of all labels together, the best.

    Returns:
        (S,) int64 rows that stay, by sample, then by falling score, then by input order.

    Raises:
        ValueError: if the shapes do not fit, or ``max_kept`` is negative.
    """
    _check(centers, 2, scores, labels, batch_index, max_kept)
    dtype = torch.promote_types(centers.dtype, torch.float32)
    radii = torch.as_tensor(radius, dtype=dtype, device=centers.device)
    if radii.ndim == 0:
        radii = radii.expand(len(centers))
    if radii.shape != centers.shape[:1]:
        raise ValueError(
            f"radius must be a number or ({len(centers)},), one for each box, "
            f"not {tuple(radii.shape)}"
        )
    floats = centers.detach(), scores.detach(), radii.detach()
    return _circle_nms(*floats, labels, batch_index, max_kept)


def _check(boxes: Tensor, columns: int, scores, labels, batch_index, max_kept) -> None:
    if boxes.ndim != 2 or boxes.shape[1] < columns:
        raise ValueError(f"expected (M, {columns} or more) boxes, not {tuple(boxes.shape)}")
    rows = {"scores": scores, "labels": labels, "batch_index": batch_index}
    for name, row in rows.items():
        if row is not None and row.shape != boxes.shape[:1]:
            raise ValueError(f"{name} must be ({len(boxes)},), not {tuple(row.shape)}")
    if max_kept is not None and max_kept < 0:
        raise ValueError(f"max_kept is {max_kept}; it must not be negative")
