"""nuScenes' detection metrics: mAP, the five true-positive errors, NDS.

Equal to nuscenes-devkit 1.2.0's ``DetectionEval`` with ``detection_cvpr_2019`` (tests hold them
together to 1e-6), many times faster, with numpy and numba alone.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ...datasets.nuscenes.classes import DETECTION_CLASSES
from .boxes import GlobalBoxes
from .detection_curves import average_precision, mean_error
from .detection_errors import ERRORS, is_defined, true_positive_errors
from .filters import distance_from_vehicle, evaluated
from .ground_truth import GroundTruth
from .matching import match, score_order

THRESHOLDS = (0.5, 1.0, 2.0, 4.0)  # metres between centres on the ground
ERROR_THRESHOLD = 2.0  # the one at which the errors are taken
RANGES = ((0.0, 20.0), (20.0, 30.0), (30.0, 40.0), (40.0, 50.0))  # metres from the vehicle
MEAN_AP_WEIGHT = 5
MOVING = 0.5  # m/s: above it an object moves


@dataclass(frozen=True)
class RangeMetrics:
    """Detection among the boxes of one band of distances from the vehicle."""

    near: float  # metres, inclusive
    far: float  # metres, exclusive
    label_aps: dict[str, float]  # mean over thresholds; NaN for classes without ground truth here
    label_tp_errors: dict[str, dict[str, float]]  # class -> error; NaN likewise

    @property
    def mean_ap(self) -> float:
        """Mean over the classes that have ground truth in the band; NaN if none has."""
        return _mean_of_known(self.label_aps.values())

    @property
    def nd_score(self) -> float:
        """NDS of the classes that have ground truth in the band; NaN if none has.

        An error that none of them has (cones have no heading) is left out of the average.
        """
        errors = _mean_errors(self.label_tp_errors)
        return _nd_score(self.mean_ap, {e: v for e, v in errors.items() if not math.isnan(v)})


@dataclass(frozen=True)
class DetectionMetrics:
    """The devkit's summary, by its names, with a breakdown by distance."""

    label_aps: dict[str, dict[float, float]]  # class -> threshold -> AP
    label_tp_errors: dict[str, dict[str, float]]  # class -> error; NaN where it has no meaning
    range_aps: tuple[RangeMetrics, ...]
    moving_vel_errors: dict[str, float]  # class -> vel_err of moving objects; NaN without any
    num_truth: dict[str, int]  # class -> ground-truth boxes that count
    num_predictions: dict[str, int]  # class -> predicted boxes that count

    @property
    def mean_dist_aps(self) -> dict[str, float]:
        """AP of each class, mean over the four thresholds."""
        return {name: float(np.mean(list(aps.values()))) for name, aps in self.label_aps.items()}

    @property
    def mean_ap(self) -> float:
        """mAP: mean over classes and thresholds; a class without ground truth counts 0."""
        return float(np.mean(list(self.mean_dist_aps.values())))

    @property
    def tp_errors(self) -> dict[str, float]:
        """mATE, mASE, mAOE, mAVE, mAAE by the devkit's names."""
        return _mean_errors(self.label_tp_errors)

    @property
    def moving_vel_err(self) -> float:
        """mAVE of objects that move, over the classes that have any; NaN if none has.

        The devkit's mAVE counts what is parked too, whose velocity is no riddle.
        """
        return _mean_of_known(self.moving_vel_errors.values())

    @property
    def tp_scores(self) -> dict[str, float]:
        """1 - error, not below 0."""
        return _scores(self.tp_errors)

    @property
    def nd_score(self) -> float:
        """NDS: mAP five times and the five scores once, averaged."""
        return _nd_score(self.mean_ap, self.tp_errors)

    def to_json(self) -> dict:
        """The layout of the devkit's ``metrics_summary.json``; NaN becomes None (JSON null)."""
        return {
            "label_aps": {
                name: {str(threshold): ap for threshold, ap in aps.items()}
                for name, aps in self.label_aps.items()
            },
            "mean_dist_aps": self.mean_dist_aps,
            "mean_ap": self.mean_ap,
            "label_tp_errors": {
                name: {error: _or_none(value) for error, value in errors.items()}
                for name, errors in self.label_tp_errors.items()
            },
            "tp_errors": self.tp_errors,
            "moving_vel_err": _or_none(self.moving_vel_err),
            "moving_vel_errors": {n: _or_none(e) for n, e in self.moving_vel_errors.items()},
            "tp_scores": self.tp_scores,
            "nd_score": self.nd_score,
            "range_aps": [
                {
                    "near": band.near,
                    "far": band.far,
                    "label_aps": {name: _or_none(ap) for name, ap in band.label_aps.items()},
                    "mean_ap": _or_none(band.mean_ap),
                    "nd_score": _or_none(band.nd_score),
                }
                for band in self.range_aps
            ],
            "num_truth": self.num_truth,
            "num_predictions": self.num_predictions,
        }


def evaluate_detections(predictions: GlobalBoxes, truth: GroundTruth) -> DetectionMetrics:
    """Measure predictions against ground truth.

    Args:
        predictions: boxes of the same samples as ``truth`` (``read_submission`` sees to that).
        truth: see ``ground_truth``.

    Raises:
        DataError: if a matched box has a size that is not positive.
    """
    predictions = evaluated(predictions, truth)
    predictions = predictions[score_order(predictions.score)]
    boxes = evaluated(truth.boxes, truth)
    matched = match(predictions, boxes, THRESHOLDS)
    per_class = [predictions.label == k for k in range(len(DETECTION_CLASSES))]
    aps = _label_aps(matched, per_class, boxes)
    return DetectionMetrics(
        label_aps={
            name: dict(zip(THRESHOLDS, row, strict=True))
            for name, row in zip(DETECTION_CLASSES, aps, strict=True)
        },
        label_tp_errors=_label_errors(matched, per_class, predictions, boxes),
        range_aps=_range_aps(predictions, boxes, truth),
        moving_vel_errors=_moving_vel_errors(matched, per_class, predictions, boxes),
        num_truth=_count(boxes.label),
        num_predictions=_count(predictions.label),
    )


def _label_aps(matched: NDArray, per_class: list[NDArray], boxes: GlobalBoxes) -> list[list[float]]:
    """AP by class (rows) and threshold (columns)."""
    count = np.bincount(boxes.label, minlength=len(DETECTION_CLASSES))
    return [
        [average_precision(row[mine] >= 0, int(count[k])) for row in matched]
        for k, mine in enumerate(per_class)
    ]


def _label_errors(
    matched: NDArray, per_class: list[NDArray], predictions: GlobalBoxes, boxes: GlobalBoxes
) -> dict[str, dict[str, float]]:
    found = matched[THRESHOLDS.index(ERROR_THRESHOLD)]
    pairs = np.flatnonzero(found >= 0)
    errors = true_positive_errors(predictions[pairs], boxes[found[pairs]])
    count = np.bincount(boxes.label, minlength=len(DETECTION_CLASSES))
    table = {}
    for k, name in enumerate(DETECTION_CLASSES):
        hit, score = found[per_class[k]] >= 0, predictions.score[per_class[k]]
        mine = predictions.label[pairs] == k
        table[name] = {
            error: mean_error(hit, score, errors[error][mine], int(count[k]))
            if is_defined(name, error)
            else math.nan
            for error in ERRORS
        }
    return table


def _moving_vel_errors(
    matched: NDArray, per_class: list[NDArray], predictions: GlobalBoxes, boxes: GlobalBoxes
) -> dict[str, float]:
    """As vel_err, were there no other objects than those that move, nor boxes that find others."""
    found = matched[THRESHOLDS.index(ERROR_THRESHOLD)]
    moves = np.linalg.norm(boxes.velocity, axis=1) > MOVING  # not, where it is unknown
    table = {}
    for k, name in enumerate(DETECTION_CLASSES):
        count = int((moves & (boxes.label == k)).sum())
        mine = np.flatnonzero(per_class[k])
        mine = mine[(found[mine] < 0) | moves[found[mine]]]
        hit, score = found[mine] >= 0, predictions.score[mine]
        pairs = mine[hit]
        change = predictions.velocity[pairs] - boxes.velocity[found[pairs]]
        error = np.linalg.norm(change, axis=1)
        known = count > 0 and is_defined(name, "vel_err")
        table[name] = mean_error(hit, score, error, count) if known else math.nan
    return table


def _range_aps(
    predictions: GlobalBoxes, boxes: GlobalBoxes, truth: GroundTruth
) -> tuple[RangeMetrics, ...]:
    """Predictions and ground truth are both cut to the band before matching."""
    predicted_at = distance_from_vehicle(predictions, truth)
    true_at = distance_from_vehicle(boxes, truth)
    bands = []
    for near, far in RANGES:
        inside = predictions[(near <= predicted_at) & (predicted_at < far)]
        wanted = boxes[(near <= true_at) & (true_at < far)]
        per_class = [inside.label == k for k in range(len(DETECTION_CLASSES))]
        matched = match(inside, wanted, THRESHOLDS)
        rows = _label_aps(matched, per_class, wanted)
        present = np.bincount(wanted.label, minlength=len(DETECTION_CLASSES)) > 0
        aps = {
            name: float(np.mean(row)) if here else math.nan
            for name, row, here in zip(DETECTION_CLASSES, rows, present, strict=True)
        }
        errors = {
            name: row if here else dict.fromkeys(row, math.nan)
            for (name, row), here in zip(
                _label_errors(matched, per_class, inside, wanted).items(), present, strict=True
            )
        }
        bands.append(RangeMetrics(near, far, aps, errors))
    return tuple(bands)


def _count(label: NDArray) -> dict[str, int]:
    count = np.bincount(label, minlength=len(DETECTION_CLASSES))
    return dict(zip(DETECTION_CLASSES, count.tolist(), strict=True))


def _mean_errors(label_tp_errors: dict[str, dict[str, float]]) -> dict[str, float]:
    """Each error's mean over the classes that have it."""
    return {e: _mean_of_known(row[e] for row in label_tp_errors.values()) for e in ERRORS}


def _scores(tp_errors: dict[str, float]) -> dict[str, float]:
    return {name: max(0.0, 1.0 - error) for name, error in tp_errors.items()}


def _nd_score(mean_ap: float, tp_errors: dict[str, float]) -> float:
    total = MEAN_AP_WEIGHT * mean_ap + sum(_scores(tp_errors).values())
    return total / (MEAN_AP_WEIGHT + len(tp_errors))


def _mean_of_known(values) -> float:
    known = [value for value in values if not math.isnan(value)]
    return float(np.mean(known)) if known else math.nan


def _or_none(value: float) -> float | None:
    return None if math.isnan(value) else value
