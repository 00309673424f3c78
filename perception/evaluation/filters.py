"""Which boxes nuScenes' detection and tracking metrics look at."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ...datasets.geometry import rotation_from_quaternion
from ...datasets.nuscenes.classes import DETECTION_CLASSES
from .boxes import GlobalBoxes
from .ground_truth import GroundTruth

# Metres from the vehicle, on the ground; boxes strictly nearer count.
CLASS_RANGE = {
    "car": 50.0,
    "truck": 50.0,
    "bus": 50.0,
    "trailer": 50.0,
    "construction_vehicle": 50.0,
    "pedestrian": 40.0,
    "motorcycle": 40.0,
    "bicycle": 40.0,
    "traffic_cone": 30.0,
    "barrier": 30.0,
}
_RANGE = np.array([CLASS_RANGE[name] for name in DETECTION_CLASSES])
_PARKED_IN_RACKS = [DETECTION_CLASSES.index(name) for name in ("bicycle", "motorcycle")]


def evaluated(boxes: GlobalBoxes, truth: GroundTruth) -> GlobalBoxes:
    """The boxes that count: in their class's range, not without points, not in a bike rack."""
    return boxes[counts(boxes, truth)]


def counts(boxes: GlobalBoxes, truth: GroundTruth) -> NDArray[np.bool_]:
    """(M,) does the box count?"""
    keep = (distance_from_vehicle(boxes, truth) < _RANGE[boxes.label]) & (boxes.num_points != 0)
    rows = np.flatnonzero(keep)
    keep[rows] = ~_in_bike_rack(boxes[rows], truth.bike_racks)
    return keep


def distance_from_vehicle(boxes: GlobalBoxes, truth: GroundTruth) -> NDArray[np.float64]:
    """(M,) metres on the ground from the vehicle to the middle of each box."""
    offset = boxes.translation[:, :2] - truth.ego_position[boxes.sample]
    return np.sqrt(np.sum(offset**2, axis=1))


def _in_bike_rack(boxes: GlobalBoxes, racks: GlobalBoxes) -> NDArray[np.bool_]:
    """(M,) is this a bicycle or motorcycle whose middle lies in a bike rack of its sample?"""
    inside = np.zeros(len(boxes), bool)
    candidates = np.flatnonzero(np.isin(boxes.label, _PARKED_IN_RACKS))
    candidates = candidates[np.argsort(boxes.sample[candidates], kind="stable")]
    sample = boxes.sample[candidates]
    for rack in range(len(racks)):
        first = np.searchsorted(sample, racks.sample[rack], "left")
        last = np.searchsorted(sample, racks.sample[rack], "right")
        near = candidates[first:last]
        turn = rotation_from_quaternion(racks.rotation[rack])
        # Row vectors: p @ R is R.T @ p, the point in the rack's own axes.
        local = (boxes.translation[near] - racks.translation[rack]) @ turn
        half = racks.size[rack, [1, 0, 2]] / 2  # length lies along the rack's x axis
        inside[near] |= (np.abs(local) <= half).all(axis=1)
    return inside
