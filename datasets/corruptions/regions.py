"""Which annotated object a LiDAR point belongs to."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from ...kernels.numba_points_in_boxes import points_in_boxes
from ..boxes import Boxes3D
from ..frame import Camera, Frame, LidarSweep
from ..geometry import apply, inverse


def boxes_at(frame: Frame, sensor: LidarSweep | Camera) -> Boxes3D:
    """The annotated boxes in the key ego frame where they were at a sensor's time.

    They move with their annotated velocity; boxes without one stay.
    """
    if frame.annotations is None:
        return Boxes3D.empty()
    boxes = frame.annotations.boxes
    lag = (frame.timestamp_us - sensor.timestamp_us) * 1e-6
    moved = boxes.center.copy()
    moved[:, :2] -= lag * np.nan_to_num(boxes.velocity)
    return replace(boxes, center=moved)


def key_ego_from_lidar(frame: Frame, sweep: LidarSweep) -> NDArray[np.float64]:
    """(4, 4): points of a sweep to the ego frame at key time."""
    return inverse(frame.global_from_ego) @ sweep.global_from_ego @ sweep.ego_from_lidar


def object_of_points(
    points: NDArray[np.float32], frame: Frame, sweep: LidarSweep, boxes: Boxes3D | None = None
) -> NDArray[np.int64]:
    """(P,) index of the box that holds each point of a sweep, -1 for none.

    Args:
        points: (P, 5) in the sensor's frame.
        frame: with the annotations.
        sweep: the points' own.
        boxes: in the key ego frame; by default :func:`boxes_at`.
    """
    boxes = boxes_at(frame, sweep) if boxes is None else boxes
    rows = np.concatenate([boxes.center, boxes.size, boxes.yaw[:, None]], 1)
    xyz = apply(key_ego_from_lidar(frame, sweep), points[:, :3].astype(np.float64))
    return points_in_boxes(xyz, rows, num_threads=1)
