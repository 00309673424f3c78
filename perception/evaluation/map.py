"""Map segmentation IoU in MIT BEVFusion's protocol.

True and false positives are summed over the whole set for seven thresholds; each class counts with
its best threshold, and mIoU is the mean over classes. (The threshold is thus chosen on the set
that is measured: it is part of the protocol, and what published numbers mean.)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ...datasets.nuscenes.classes import MAP_CLASSES

MAP_THRESHOLDS = (0.35, 0.40, 0.45, 0.50, 0.55, 0.60, 0.65)


@dataclass(frozen=True)
class MapMetrics:
    """IoU by class and threshold, and the one figure."""

    ious: dict[str, dict[float, float]]  # class -> threshold -> IoU
    num_samples: int  # samples with map labels

    @property
    def label_ious(self) -> dict[str, float]:
        """IoU of each class at its best threshold."""
        return {name: max(by_threshold.values()) for name, by_threshold in self.ious.items()}

    @property
    def best_thresholds(self) -> dict[str, float]:
        """The threshold at which each class is best; the lowest of equals."""
        return {name: max(row, key=row.__getitem__) for name, row in self.ious.items()}

    @property
    def mean_iou(self) -> float:
        """``map/mean/iou@max``: mean over classes."""
        return float(np.mean(list(self.label_ious.values())))

    def to_json(self) -> dict:
        """mIoU, per class, and per class and threshold."""
        return {
            "mIoU": self.mean_iou,
            "label_ious": self.label_ious,
            "best_thresholds": self.best_thresholds,
            "ious": {
                name: {f"{threshold:.2f}": iou for threshold, iou in row.items()}
                for name, row in self.ious.items()
            },
            "num_samples": self.num_samples,
        }


class MapIoU:
    """Accumulates map segmentation counts batch by batch.

    Args:
        num_classes: K.
        names: K class names; nuScenes' six where there are six, numbers otherwise.

    ``counts`` and ``num_samples`` of parts measured elsewhere may be added up.
    """

    def __init__(self, num_classes: int = len(MAP_CLASSES), names: Sequence[str] | None = None):
        if names is None:
            six = num_classes == len(MAP_CLASSES)
            names = MAP_CLASSES if six else [str(k) for k in range(num_classes)]
        if len(names) != num_classes:
            raise ValueError(f"{num_classes} map classes, but {len(names)} names")
        self.names = tuple(names)
        # (2, K, 8) cells by label, class and how many of the thresholds the probability reaches.
        self.counts = np.zeros((2, num_classes, len(MAP_THRESHOLDS) + 1), np.int64)
        self.num_samples = 0

    def update(self, probabilities: NDArray, masks: NDArray, valid: NDArray | None = None) -> None:
        """Add a batch.

        Args:
            probabilities: (B, K, X, Y) float in [0, 1].
            masks: (B, K, X, Y) bool, the labels.
            valid: (B,) bool, samples to count; all by default.

        Raises:
            ValueError: if shapes differ or a probability is NaN.
        """
        probabilities, masks = np.asarray(probabilities), np.asarray(masks, bool)
        if probabilities.shape != masks.shape or probabilities.ndim != 4:
            raise ValueError(
                f"map probabilities are {probabilities.shape}, labels {masks.shape}; "
                "both must be (B, K, X, Y) on one grid"
            )
        if probabilities.shape[1] != len(self.names):
            raise ValueError(f"{probabilities.shape[1]} map classes, expected {len(self.names)}")
        if valid is not None:
            keep = np.asarray(valid, bool)
            probabilities, masks = probabilities[keep], masks[keep]
        if np.isnan(probabilities).any():
            raise ValueError("map probabilities hold NaN")
        self.counts += _histogram(probabilities, masks)
        self.num_samples += len(probabilities)

    def compute(self) -> MapMetrics:
        """The metrics of everything added so far."""
        # Cells that reach threshold t are those that reach at least t + 1 of the thresholds.
        reached = self.counts[:, :, ::-1].cumsum(axis=2)[:, :, ::-1]
        false_positive, true_positive = reached[:, :, 1:]
        union = reached[1, :, :1] + false_positive
        iou = true_positive / (union + 1e-7)
        ious = {
            name: dict(zip(MAP_THRESHOLDS, row, strict=True))
            for name, row in zip(self.names, iou.tolist(), strict=True)
        }
        return MapMetrics(ious, self.num_samples)


def _histogram(probabilities: NDArray, masks: NDArray) -> NDArray[np.int64]:
    """(2, K, 8) cells by label, class and number of thresholds reached."""
    # In the probabilities' own precision, so that "at least" means what it means in the model.
    thresholds = np.asarray(MAP_THRESHOLDS, probabilities.dtype)
    num_classes, bins = probabilities.shape[1], len(thresholds) + 1
    counts = np.zeros((2, num_classes, bins), np.int64)
    for k in range(num_classes):
        level = np.searchsorted(thresholds, probabilities[:, k].ravel(), side="right")
        joint = level + bins * masks[:, k].ravel()
        counts[:, k] = np.bincount(joint, minlength=2 * bins).reshape(2, bins)
    return counts
