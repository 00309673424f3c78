"""Which detection continues which track."""

from __future__ import annotations

from typing import Literal

import numpy as np
from numpy.typing import NDArray

from ...datasets.boxes import Boxes3D
from ...kernels.numba_assignment import assign
from ...kernels.numba_boxes import box_overlap
from ...kernels.overlap import Overlap

Measure = Literal["distance", "giou"]


def associate(
    tracks: Boxes3D,
    found: Boxes3D,
    by_giou: NDArray[np.bool_],
    gate: NDArray[np.float64],
    affinity: NDArray[np.float64] | None = None,
    weight: float = 0.5,
) -> NDArray[np.int64]:
    """Assign detections to tracks of their class so that the sum of what is saved is largest.

    A pair saves the share of its gate that it leaves over. So a good pair is never given up for
    two bad ones, and a pair outside its gate is never made.

    Args:
        tracks: N boxes, where they are expected now.
        found: M boxes.
        by_giou: (N,) measure this track by 1 - GIoU of the ground rectangles, 0..2, rather than by
            the distance of the middles on the ground, metres.
        gate: (N,) what the measure must be below.
        affinity: (N, M) learned probability that the two are one object, NaN where unknown; it is
            mixed into what a pair saves, and opens no gate.
        weight: its share there, 0..1.

    Returns:
        (N,) index into ``found``, -1 for none.
    """
    if not len(tracks) or not len(found):
        return np.full(len(tracks), -1, np.int64)
    offset = tracks.center[:, None, :2] - found.center[None, :, :2]
    cost = np.hypot(offset[..., 0], offset[..., 1])
    if by_giou.any():
        expected, detected = _rows(tracks[by_giou]), _rows(found)
        overlap = box_overlap(expected, detected, Overlap.BEV_GIOU, aligned=False, num_threads=1)
        cost[by_giou] = 1 - overlap
    relative = cost / gate[:, None] - 1
    forbidden = (relative >= 0) | (tracks.label[:, None] != found.label[None])
    if affinity is not None:
        mixed = (1 - weight) * relative - weight * affinity
        relative = np.where(np.isnan(affinity), relative, mixed)
    relative[forbidden] = np.inf
    alone = np.zeros((len(tracks), len(tracks)))  # or the track stays alone, and saves nothing
    chosen = assign(np.concatenate([relative, alone], axis=1))
    return np.where(chosen < len(found), chosen, -1)


def _rows(boxes: Boxes3D) -> NDArray[np.float64]:
    """(M, 7) as the kernels take them."""
    return np.column_stack([boxes.center, boxes.size, boxes.yaw])
