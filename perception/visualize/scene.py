"""What of a frame is drawn, in the BEV frame."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ...datasets.boxes import Boxes3D, Detections
from ...datasets.frame import Camera, Frame
from ...datasets.geometry import apply, inverse

VEHICLE = (-1.1, 3.1, 0.95)  # rear, front and half width of the ego vehicle, metres from its origin


def truth_of(frame: Frame) -> Boxes3D | None:
    """The annotated boxes of the known classes in the BEV frame; None if there is no annotation."""
    if frame.annotations is None:
        return None
    boxes = frame.annotations.boxes
    return boxes[boxes.label >= 0].transformed(frame.bev_from_ego)


def key_points(frame: Frame) -> NDArray[np.float32] | None:
    """(P, 4) points of the key sweep: x, y, z in the BEV frame, intensity; None without LiDAR.

    Returns from the vehicle itself are left out.
    """
    if not frame.sweeps:
        return None
    sweep = frame.sweeps[0]
    points = sweep.load()
    ego = apply(
        inverse(frame.global_from_ego) @ sweep.global_from_ego @ sweep.ego_from_lidar,
        points[:, :3].astype(np.float64),
    )
    rear, front, half = VEHICLE
    own = (ego[:, 0] > rear) & (ego[:, 0] < front) & (abs(ego[:, 1]) < half)
    bev = apply(frame.bev_from_ego, ego[~own])
    return np.concatenate([bev, points[~own, 3:4]], 1).astype(np.float32)


def camera_from_bev(frame: Frame, camera: Camera) -> NDArray[np.float64]:
    """(4, 4) BEV frame -> camera frame, by way of the vehicle's pose at each one's own time."""
    global_from_bev = frame.global_from_ego @ inverse(frame.bev_from_ego)
    return inverse(camera.global_from_ego @ camera.ego_from_camera) @ global_from_bev


def as_detections(boxes: Detections | Boxes3D | None) -> Detections:
    """Boxes of any kind as detections: truth has score 1, none is an empty set."""
    if isinstance(boxes, Detections):
        return boxes
    boxes = Boxes3D.empty() if boxes is None else boxes
    return Detections(boxes, np.ones(len(boxes)), np.full(len(boxes), -1))


def confident(boxes: Detections, min_score: float) -> Detections:
    """The detections to draw, the weakest first, so that the best are drawn on top."""
    boxes = boxes[np.argsort(boxes.score, kind="stable")]
    return boxes[boxes.score >= min_score]
