"""nuScenes' tracking metrics: AMOTA, AMOTP, and the CLEAR MOT figures at the best threshold.

Equal to nuscenes-devkit 1.2.0's ``TrackingEval`` with ``tracking_nips_2019`` (tests hold them
together to 1e-6), with numpy and numba alone. AMOTA and AMOTP are means over 40 recall values
(Weng et al., IROS 2020); MOTA and its relatives are those of the score threshold whose MOTA is
best.

Habits of the devkit that are kept, besides those named in ``tracks.py`` and ``clear_mot.py``:

* Thresholds come from the scores of matches alone; a switch does not count as found there, though
  it does in the recall that is reported.
* The recall in MOTAR leaves switches out too, and is the measured one, not the 0.1, 0.12, ...
  that the threshold was chosen for.
* A class without ground truth has NaN and is left out of means. A class of which nothing was found
  has fixed worst values, and NaN for false positives, switches and fragments.
* ``gt`` is averaged over classes, though it is a count.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ...datasets.nuscenes.classes import DETECTION_CLASSES, TRACKING_CLASSES
from .clear_mot import Events, Matcher
from .filters import counts
from .ground_truth import TrackingTruth
from .tracks import Timeline, TrackedBoxes, TrackPoints, track_points

MAX_DISTANCE = 2.0  # metres between centres on the ground
RECALL = np.linspace(0.1, 1, 40).round(12)
FRAME_SECONDS = 0.5  # what the devkit takes the time between two frames to be
SUMMED = ("mt", "ml", "tp", "fp", "fn", "ids", "frag")  # over classes; all others are averaged
WORST_AMOTP = 2.0  # metres, for a recall that is not reached
METRICS = (
    *("amota", "amotp", "recall", "motar", "gt", "mota", "motp", "mt", "ml"),
    *("faf", "tp", "fp", "fn", "ids", "frag", "tid", "lgd"),
)


@dataclass(frozen=True)
class TrackingMetrics:
    """The devkit's summary, by its names.

    Args:
        label_metrics: metric -> class -> value; NaN for a class without ground truth.
        num_truth: class -> annotated boxes that count, holes filled.
        num_tracks: class -> predicted tracks that count.
    """

    label_metrics: Mapping[str, Mapping[str, float]]
    num_truth: Mapping[str, int]
    num_tracks: Mapping[str, int]

    def overall(self, metric: str) -> float:
        """A metric over all classes: a sum or a mean, NaN entries left out."""
        values = np.array(list(self.label_metrics[metric].values()))
        if metric in SUMMED:
            return float(np.nansum(values))
        return float(np.nanmean(values)) if not np.isnan(values).all() else math.nan

    @property
    def amota(self) -> float:
        """Average multi-object tracking accuracy, 0..1."""
        return self.overall("amota")

    @property
    def amotp(self) -> float:
        """Average multi-object tracking precision, metres."""
        return self.overall("amotp")

    def headline(self) -> dict[str, float | None]:
        """The main figures, by their usual names."""
        names = {"AMOTA": "amota", "AMOTP": "amotp", "MOTA": "mota", "IDS": "ids"}
        return {name: _or_none(self.overall(metric)) for name, metric in names.items()}

    def to_json(self) -> dict:
        """The layout of the devkit's ``metrics_summary.json``; NaN becomes None (JSON null)."""
        return {metric: _or_none(self.overall(metric)) for metric in METRICS} | {
            "label_metrics": {
                metric: {name: _or_none(value) for name, value in by_class.items()}
                for metric, by_class in self.label_metrics.items()
            },
            "num_truth": dict(self.num_truth),
            "num_tracks": dict(self.num_tracks),
        }


def evaluate_tracks(predictions: TrackedBoxes, truth: TrackingTruth) -> TrackingMetrics:
    """Measure tracks against the annotated ones.

    Args:
        predictions: boxes of the same samples as ``truth``.
        truth: see ``ground_truth``.
    """
    annotated = truth.annotations
    time = Timeline(truth.scene, truth.timestamp_us)
    true_boxes = TrackedBoxes(annotated.boxes, truth.instance)
    points = [
        track_points(tracked[counts(tracked.boxes, annotated)], time, mean_scores)
        for tracked, mean_scores in ((_of_task(true_boxes), False), (_of_task(predictions), True))
    ]
    scene = time.scene[time.order]
    table: dict[str, dict[str, float]] = {metric: {} for metric in METRICS}
    num_truth, num_tracks = {}, {}
    for name in TRACKING_CLASSES:
        mine, found = (_of_class(p, DETECTION_CLASSES.index(name)) for p in points)
        num_truth[name], num_tracks[name] = len(mine), len(np.unique(found.track))
        for metric, value in _measure(mine, found, scene).items():
            table[metric][name] = value
    return TrackingMetrics(table, num_truth, num_tracks)


def _of_task(tracked: TrackedBoxes) -> TrackedBoxes:
    labels = [DETECTION_CLASSES.index(name) for name in TRACKING_CLASSES]
    return tracked[np.isin(tracked.boxes.label, labels)]


def _of_class(points: TrackPoints, label: int) -> TrackPoints:
    """Points of a class, tracks numbered anew."""
    mine = points[points.label == label]
    _, track = np.unique(mine.track, return_inverse=True)
    return TrackPoints(
        mine.moment, np.ascontiguousarray(mine.place), mine.label, mine.score, track.reshape(-1)
    )


def _measure(truth: TrackPoints, found: TrackPoints, scene: NDArray) -> dict[str, float]:
    """All metrics of one class."""
    if not len(truth):
        return dict.fromkeys(METRICS, math.nan)
    matcher = Matcher(truth, found, len(scene), scene, MAX_DISTANCE)
    thresholds = _thresholds(matcher.events().match_scores, len(truth))
    achieved = thresholds[~np.isnan(thresholds)]  # rising: the highest recall comes first
    if not len(achieved):
        return _nothing_found(truth)
    distinct, times = np.unique(achieved, return_counts=True)
    rows = [_figures(matcher.events(threshold)) for threshold in distinct]
    best = rows[int(np.argmax([row["mota"] for row in rows]))]  # of equal ones the highest recall
    motar = np.array([row["motar"] for row in rows])
    motp = np.array([row["motp"] for row in rows])
    amota = np.nan_to_num(motar, nan=0.0) @ times / len(RECALL)
    if np.isnan(motar).all():  # only switches; the devkit takes it for a class without truth
        amota = math.nan
    unachieved = len(RECALL) - len(achieved)
    amotp = (np.nan_to_num(motp, nan=WORST_AMOTP) @ times + WORST_AMOTP * unachieved) / len(RECALL)
    return {"amota": float(amota), "amotp": float(amotp)} | best


def _thresholds(scores: NDArray, num_truth: int) -> NDArray[np.float64]:
    """(40,) scores that reach each recall, the highest recall first; NaN if it is not reached."""
    if not len(scores):
        return np.full(len(RECALL), np.nan)
    scores = np.sort(scores)[::-1]
    recall = np.arange(1, len(scores) + 1) / num_truth
    thresholds = np.interp(RECALL, recall, scores, right=0)
    thresholds[recall[-1] < RECALL] = np.nan
    return thresholds[::-1]


def _figures(events: Events) -> dict[str, float]:
    """CLEAR MOT and nuScenes' own figures at one threshold."""
    truth = int(events.count.sum())
    wrong = events.misses + events.switches + events.false_positives
    detections = events.matches + events.switches
    recall = events.matches / truth
    excess = (wrong - (1 - recall) * truth) / (recall * truth) if recall else math.nan
    share = events.found / events.count
    tracked = events.delay >= 0
    num_tracked = int(tracked.sum())
    return {
        "recall": detections / truth,
        "motar": max(0.0, 1 - excess) if recall else math.nan,
        "gt": float(truth),
        "mota": max(0.0, 1 - wrong / truth),
        "motp": events.distance / detections if detections else math.nan,
        "mt": float((share >= 0.8).sum()),
        "ml": float((share < 0.2).sum()),
        "faf": events.false_positives / events.num_frames * 100,
        "tp": float(events.matches),
        "fp": float(events.false_positives),
        "fn": float(events.misses),
        "ids": float(events.switches),
        "frag": float(events.fragments.sum()),
        "tid": _mean_seconds(events.delay[tracked], num_tracked),
        "lgd": _mean_seconds(events.longest_gap[tracked], num_tracked),
    }


def _mean_seconds(moments: NDArray, count: int) -> float:
    return float(moments.sum()) * FRAME_SECONDS / count if count else math.nan


def _nothing_found(truth: TrackPoints) -> dict[str, float]:
    """The worst values, where no prediction matches any object."""
    boxes, objects = float(len(truth)), float(len(np.unique(truth.track)))
    return {
        "amota": 0.0, "amotp": WORST_AMOTP, "recall": 0.0, "motar": 0.0, "gt": boxes, "mota": 0.0,
        "motp": 2.0, "mt": 0.0, "ml": objects, "faf": 500.0, "tp": 0.0, "fp": math.nan,
        "fn": boxes, "ids": math.nan, "frag": math.nan, "tid": 20.0, "lgd": 20.0,
    }  # fmt: skip


def _or_none(value: float) -> float | None:
    return None if math.isnan(value) else value
