"""Boxes of a submission file, of any system, ready to be drawn."""

from __future__ import annotations

import numpy as np

from ...datasets.boxes import Boxes3D, Detections
from ...datasets.frame import Frame
from ...datasets.geometry import inverse, rotation_from_quaternion, yaw_of
from ..evaluation.boxes import GlobalBoxes


def detections_of(boxes: GlobalBoxes, sample: int, frame: Frame) -> Detections:
    """The boxes of one sample in the BEV frame of ``frame``, best first.

    Args:
        boxes: of many samples (:func:`bevstack.perception.evaluation.submission.read_submission`).
        sample: which one.
        frame: that sample.
    """
    rows = np.flatnonzero(boxes.sample == sample)
    rows = rows[np.argsort(-boxes.score[rows], kind="stable")]
    upright = Boxes3D(
        boxes.translation[rows],
        boxes.size[rows][:, [1, 0, 2]],
        yaw_of(rotation_from_quaternion(boxes.rotation[rows])),
        boxes.velocity[rows],
        boxes.label[rows],
    )
    bev_from_global = frame.bev_from_ego @ inverse(frame.global_from_ego)
    moved = upright.transformed(bev_from_global)
    return Detections(moved, boxes.score[rows], boxes.attribute[rows])
