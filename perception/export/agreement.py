"""How far two models find the same in a frame, between 0 and 1 by task."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from ...datasets.boxes import Detections
from ...datasets.nuscenes.classes import FREE
from ..runtime import Perception
from .parity import Parity, compare_boxes


def agreement(pairs: Iterable[tuple[Perception, Perception]]) -> dict[str, float]:
    """Of results on the same frames, by task.

    - detection: the share of boxes (class, and place to half a metre) that the other model has
      too, over both;
    - map: the sum of the smaller probability of every cell over the sum of the larger, the mean
      of the layers;
    - occupancy: the share of voxels with the same class, of those that either sees occupied.
    """
    boxes, found = 0, 0
    shared: list[np.ndarray] = []
    same, either = 0, 0
    for a, b in pairs:
        if a.detections is not None and b.detections is not None:
            for one, other in ((a.detections, b.detections), (b.detections, a.detections)):
                number, again = _boxes_found(one, other)
                boxes, found = boxes + number, found + again
        if a.map is not None and b.map is not None:
            smaller, larger = np.minimum(a.map, b.map), np.maximum(a.map, b.map)
            shared.append(np.stack([smaller.sum((1, 2)), larger.sum((1, 2))]))
        if a.occupancy is not None and b.occupancy is not None:
            ours, theirs = a.occupancy.semantics, b.occupancy.semantics
            occupied = (ours != FREE) | (theirs != FREE)
            same, either = same + int((ours == theirs)[occupied].sum()), either + occupied.sum()
    result = {}
    if boxes:
        result["detection"] = found / boxes
    if shared:
        smaller, larger = np.sum(shared, 0)
        result["map"] = float(np.mean(smaller / np.maximum(larger, 1e-9)))
    if either:
        result["occupancy"] = same / int(either)
    return result


def _boxes_found(one: Detections, other: Detections) -> tuple[int, int]:
    parity = Parity()
    compare_boxes(one, other, parity)
    return parity.num_boxes, parity.boxes_found
