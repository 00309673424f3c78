"""Non-maximum suppression on the CPU, on numpy arrays, without torch.

Boxes are sorted by sample, label and score; every run of one sample and label is then one greedy
sweep, and sweeps share the threads. What the functions mean is told in ``nms.py``.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from .numba_boxes import intersection, measure, prepare, row
from .threads import compiled_in_order, in_parallel

Array = NDArray


def nms(
    boxes: Array,
    scores: Array,
    iou_threshold: float,
    labels: Array | None = None,
    batch_index: Array | None = None,
    max_kept: int | None = None,
    num_threads: int | None = None,
) -> Array:
    """Rows of the boxes that stay; boxes go by overlap on the ground.

    Args:
        boxes: (M, 7) x, y, z of the middle, length, width, height, yaw.
        scores: (M,) float.
        iou_threshold: a box goes if its BEV IoU with a better one that stays is greater.
        labels: (M,) int; boxes of different labels do not see each other.
        batch_index: (M,) int; boxes of different samples do not either.
        max_kept: most boxes of a sample that stay, the best.
        num_threads: threads to use, by default all cores of this process.

    Returns:
        (S,) int64, by sample, then by falling score, then by input order.
    """
    data = prepare(boxes)
    args = scores, labels, batch_index, max_kept, num_threads
    return _suppress(_sweep_iou, data, float(iou_threshold), *args)


def circle_nms(
    centers: Array,
    scores: Array,
    radius: float | Array,
    labels: Array | None = None,
    batch_index: Array | None = None,
    max_kept: int | None = None,
    num_threads: int | None = None,
) -> Array:
    """Rows of the boxes that stay; boxes go by distance on the ground.

    Args:
        centers: (M, 2 or more) x, y first.
        radius: of one box, or of each (M,), metres: a box goes if a better one that stays is no
            further away than the mean of their two radii.

    The other arguments and the result are those of :func:`nms`.
    """
    data = np.empty((len(centers), 3))
    data[:, :2], data[:, 2] = centers[:, :2], radius
    args = scores, labels, batch_index, max_kept, num_threads
    return _suppress(_sweep_circle, data, 0.0, *args)


def _suppress(
    sweep: Callable,
    data: Array,
    threshold: float,
    scores: Array,
    labels: Array | None,
    batch_index: Array | None,
    max_kept: int | None,
    num_threads: int | None,
) -> Array:
    falling = -np.where(np.isnan(scores), -np.inf, scores)  # no number is worst
    groups = [key for key in (batch_index, labels) if key is not None]
    order = np.lexsort((falling, *groups[::-1]))  # stable; the last key is the first
    change = np.zeros(max(len(order) - 1, 0), bool)
    for key in groups:
        change |= np.diff(key[order]) != 0
    first = np.concatenate([[0], np.flatnonzero(change) + 1, [len(order)]])
    keep, data = np.ones(len(order), bool), data[order]
    args = data, first, threshold, keep
    in_parallel(lambda a, b: sweep(*args, a, b), len(first) - 1, num_threads)
    kept = np.sort(order[keep])  # as they came in
    if batch_index is None:
        return kept[np.argsort(falling[kept], kind="stable")][:max_kept]
    kept = kept[np.lexsort((falling[kept], batch_index[kept]))]
    if max_kept is not None:
        sample = batch_index[kept]
        rank = np.arange(len(kept)) - np.searchsorted(sample, sample)
        kept = kept[rank < max_kept]
    return kept


@compiled_in_order
def _sweep_iou(boxes, first, threshold, keep, low, high):
    for group in range(low, high):
        for i in range(first[group], first[group + 1]):
            if not keep[i]:
                continue
            box = row(boxes, i)
            for j in range(i + 1, first[group + 1]):
                if keep[j]:
                    other = row(boxes, j)
                    area = intersection(box, other)
                    # Most are far apart, and the rest is not worth it.
                    if area > 0 and measure(box, other, 1, area, 0.0) > threshold:
                        keep[j] = False


@compiled_in_order
def _sweep_circle(discs, first, _, keep, low, high):
    for group in range(low, high):
        for i in range(first[group], first[group + 1]):
            if not keep[i]:
                continue
            for j in range(i + 1, first[group + 1]):
                x, y = discs[i, 0] - discs[j, 0], discs[i, 1] - discs[j, 1]
                limit = (discs[i, 2] + discs[j, 2]) / 2
                if x * x + y * y <= limit * limit:
                    keep[j] = False
