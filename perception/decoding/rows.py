"""Boxes of one sample as rows of numbers, as decoding has them at its end."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ...datasets.boxes import Boxes3D, Detections
from ...kernels.numba_nms import circle_nms


def detections_of(rows: NDArray) -> Detections:
    """(M, 12) x, y, z, length, width, height, yaw, vx, vy, score, label, attribute; best first."""
    boxes = Boxes3D(
        center=rows[:, 0:3],
        size=rows[:, 3:6],
        yaw=rows[:, 6],
        velocity=rows[:, 7:9],
        label=rows[:, 10].astype(np.int64),
    )
    return Detections(boxes, rows[:, 9], rows[:, 11].astype(np.int64))


def suppress(rows: NDArray, nms_scale: float) -> NDArray:
    """The rows of :func:`detections_of` without those too near to a better one of their class.

    Nearer than the mean of their shorter sides, boxes side by side would overlap.

    Args:
        rows: (M, 12), best first.
        nms_scale: factor on that distance; 0 keeps all.
    """
    if nms_scale <= 0:
        return rows
    radius = nms_scale * rows[:, 3:5].min(1)
    return rows[circle_nms(rows[:, :2], rows[:, 9], radius, labels=rows[:, 10])]
