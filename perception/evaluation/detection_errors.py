"""How far a matched prediction is from its ground truth: nuScenes' five true-positive errors."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ...datasets.errors import DataError
from ...datasets.nuscenes.classes import DETECTION_CLASSES
from .boxes import GlobalBoxes

ERRORS = ("trans_err", "scale_err", "orient_err", "vel_err", "attr_err")
_BARRIER = DETECTION_CLASSES.index("barrier")


def is_defined(class_name: str, error: str) -> bool:
    """Does the error make sense for the class? A cone has no heading, a barrier does not move."""
    if class_name == "traffic_cone":
        return error not in ("orient_err", "vel_err", "attr_err")
    if class_name == "barrier":
        return error not in ("vel_err", "attr_err")
    return True


def true_positive_errors(
    predictions: GlobalBoxes, truth: GlobalBoxes
) -> dict[str, NDArray[np.float64]]:
    """The five errors of M matched pairs, each (M,); NaN where one cannot be told.

    Translation in metres on the ground, scale as 1 - IoU of the boxes laid onto each other,
    orientation in radians (modulo half a turn for barriers), velocity in m/s, attribute 0 or 1.

    Raises:
        DataError: if a box has a size that is not positive.
    """
    for name, boxes in (("predicted", predictions), ("ground-truth", truth)):
        if not (boxes.size > 0).all():
            raise DataError(f"a {name} box has a width, length or height that is not above zero")
    offset = predictions.translation[:, :2] - truth.translation[:, :2]
    change = predictions.velocity - truth.velocity
    wrong = (predictions.attribute != truth.attribute).astype(np.float64)
    return {
        "trans_err": np.sqrt(np.sum(offset**2, axis=1)),
        "scale_err": 1 - _scale_iou(predictions.size, truth.size),
        "orient_err": _yaw_difference(predictions.yaw, truth.yaw, truth.label == _BARRIER),
        "vel_err": np.sqrt(np.sum(change**2, axis=1)),
        "attr_err": np.where(truth.attribute < 0, np.nan, wrong),
    }


def _scale_iou(size: NDArray, other: NDArray) -> NDArray[np.float64]:
    shared = np.minimum(size, other).prod(axis=1)
    return shared / (size.prod(axis=1) + other.prod(axis=1) - shared)


def _yaw_difference(yaw: NDArray, other: NDArray, symmetric: NDArray) -> NDArray[np.float64]:
    period = np.where(symmetric, np.pi, 2 * np.pi)
    return np.abs((other - yaw + period / 2) % period - period / 2)
