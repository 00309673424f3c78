"""From dense centre predictions to boxes (see ``CenterOutput`` for the regression channels)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ...datasets.boxes import Detections
from ...datasets.geometry import angle_of
from ...datasets.nuscenes.classes import ATTRIBUTES, attributes_of
from ...kernels.grid import BEVGrid
from ...kernels.threads import compiled_in_order
from .attributes import attribute_of_speed
from .rows import detections_of, suppress

# What is regressed for a box, and with how many channels; see CenterOutput.
REGRESSION = {"offset": 2, "height": 1, "size": 3, "heading": 2, "velocity": 2}
REGRESSION["attribute"] = len(ATTRIBUTES)


@dataclass(frozen=True)
class CenterDecoder:
    """How a ``CenterHead``'s predictions become boxes.

    Args:
        grid: the grid of the maps.
        classes: detection classes, in the order of the labels.
        group_of_class: the regression branch that a class uses.
        score_threshold: boxes with a lower score are not given.
        max_boxes: most boxes per sample.
        nms_scale: of two boxes of a class whose centres are not further apart than this times
            their mean shorter side, only the better one is given; 0 turns that off.
        top: the height was predicted of a box's top, not of its middle.
    """

    grid: BEVGrid
    classes: tuple[str, ...]
    group_of_class: tuple[int, ...]
    score_threshold: float
    max_boxes: int
    nms_scale: float
    top: bool = False

    def __call__(self, heatmap: NDArray, regression: NDArray) -> Detections:
        """Boxes of one sample, best first.

        Args:
            heatmap: (K, X, Y) logits.
            regression: (G, R, X, Y).
        """
        score, label, cell = find_peaks(heatmap, self.max_boxes, self.score_threshold)
        group = np.array(self.group_of_class, np.int64)[label]
        maps = regression.reshape(*regression.shape[:2], -1)
        return self.boxes(score, label, cell, maps[group, :, cell])

    def boxes(self, score: NDArray, label: NDArray, cell: NDArray, rows: NDArray) -> Detections:
        """Boxes at peaks.

        Args:
            score: (M,) falling; what is no peak has score 0.
            label: (M,) int.
            cell: (M,) int, flat cell of the peak.
            rows: (M, R) regression there; without the attribute, it is told from the speed.
        """
        splits = np.cumsum(list(REGRESSION.values()))[:-1]
        columns = np.split(rows.astype(np.float64), splits, axis=1)
        offset, height, log_size, heading, velocity, logits = columns
        ny = self.grid.shape[1]
        x, y = self.grid.to_metres(cell // ny + offset[:, 0], cell % ny + offset[:, 1])
        # Bounded, so that an untrained network gives no infinite box: 5 cm to 55 m.
        size = np.exp(log_size.clip(-3, 4))
        height = height - size[:, 2:] / 2 if self.top else height
        yaw = angle_of(heading[:, 0], heading[:, 1])
        if logits.shape[1]:
            attribute = self._attribute(label, logits)
        else:
            attribute = attribute_of_speed(self.classes, label, velocity)
        last = np.stack([yaw, *velocity.T, score, label, attribute], 1)
        boxes = np.concatenate([np.stack([x, y], 1), height, size, last], 1)
        # Score 0 is no peak, whatever the threshold.
        boxes = boxes[(score >= self.score_threshold) & (score > 0) & np.isfinite(boxes).all(1)]
        return detections_of(suppress(boxes, self.nms_scale))

    def _attribute(self, label: NDArray, logits: NDArray) -> NDArray:
        """(M,) the likeliest attribute of those that the class may have; -1 if it has none."""
        allowed = [[name in attributes_of(c) for name in ATTRIBUTES] for c in self.classes]
        mask = np.array(allowed)[label]
        best = np.where(mask, logits, -np.inf).argmax(1)
        return np.where(mask.any(1), best, -1)


def find_peaks(
    heatmap: NDArray, max_boxes: int, score_threshold: float = 0.0
) -> tuple[NDArray, NDArray, NDArray]:
    """The best local maxima of 3x3 cells over all classes of a sample.

    Args:
        heatmap: (K, X, Y) logits.
        max_boxes: most peaks to give.
        score_threshold: lowest score of a peak.

    Returns:
        Score (probability), label and flat cell, each (M,), best first; equal ones by label and
        cell.
    """
    _, X, Y = heatmap.shape
    # A little less, since the inverse of the sigmoid rounds; exact is what `boxes` asks.
    least = max(score_threshold * (1 - 1e-6), 1e-30)
    lowest = np.log(least / (1 - least)) if least < 1 else np.inf
    index = np.empty(heatmap.size, np.int64)
    count = _peaks(np.ascontiguousarray(heatmap, np.float32), np.float32(lowest), index)
    index = index[:count]
    score = 1 / (1 + np.exp(-heatmap.reshape(-1)[index].astype(np.float32)))
    best = np.argsort(-score, kind="stable")[:max_boxes]
    return score[best], index[best] // (X * Y), index[best] % (X * Y)


@compiled_in_order
def _peaks(heatmap, lowest, index):
    K, X, Y = heatmap.shape
    count = 0
    for k in range(K):
        for i in range(X):
            for j in range(Y):
                value = heatmap[k, i, j]
                if not value >= lowest:
                    continue
                peak = True
                for a in range(max(i - 1, 0), min(i + 2, X)):
                    for b in range(max(j - 1, 0), min(j + 2, Y)):
                        higher = heatmap[k, a, b] > value
                        # Equal once they are probabilities is equal.
                        peak &= not (higher and _sigmoid(heatmap[k, a, b]) > _sigmoid(value))
                if peak:
                    index[count] = (k * X + i) * Y + j
                    count += 1
    return count


@compiled_in_order
def _sigmoid(value):
    return np.float32(1) / (np.float32(1) + np.exp(-value))
