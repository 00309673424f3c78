"""Boxes of one sample as rows of numbers, as decoding has them at its end."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ...datasets.boxes import Boxes3D, Detections


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
