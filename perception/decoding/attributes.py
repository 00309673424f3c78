"""Attributes for heads that predict none: told from class and speed."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ...datasets.nuscenes.classes import ATTRIBUTES

MOVING_SPEED = 0.2  # m/s
# The rule of MIT BEVFusion's submission writer: class -> attribute when faster, when slower.
_VEHICLE = ("vehicle.moving", "vehicle.parked")
_CYCLE = ("cycle.with_rider", "cycle.without_rider")
_RULES = {
    "car": _VEHICLE,
    "truck": _VEHICLE,
    "construction_vehicle": _VEHICLE,
    "trailer": _VEHICLE,
    "bus": ("vehicle.moving", "vehicle.stopped"),
    "motorcycle": _CYCLE,
    "bicycle": _CYCLE,
    "pedestrian": ("pedestrian.moving", "pedestrian.standing"),
}


def attribute_of_speed(classes: tuple[str, ...], label: NDArray, velocity: NDArray) -> NDArray:
    """(...,) index into ATTRIBUTES, -1 for a class that has none.

    Args:
        classes: names of the labels.
        label: (...,) int64.
        velocity: (..., 2) m/s.
    """
    table = [[ATTRIBUTES.index(a) for a in _RULES[c]] if c in _RULES else [-1, -1] for c in classes]
    slow = np.hypot(velocity[..., 0], velocity[..., 1]) <= MOVING_SPEED
    return np.array(table)[label, slow.astype(np.int64)]
