"""Tracks as nuScenes' tracking metric sees them: one score each, and no holes."""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from .boxes import GlobalBoxes


@dataclass(frozen=True)
class TrackedBoxes:
    """M boxes with the objects that they show: ground truth or predictions."""

    boxes: GlobalBoxes
    track: NDArray[np.int64]  # (M,) number of the object; a number means nothing outside its scene

    def __len__(self) -> int:
        return len(self.track)

    def __getitem__(self, keep: NDArray) -> TrackedBoxes:
        """The boxes selected by an index or boolean array."""
        return TrackedBoxes(self.boxes[keep], self.track[keep])


@dataclass(frozen=True)
class Timeline:
    """F samples as moments of scenes."""

    scene: NDArray[np.int64]  # (F,)
    timestamp_us: NDArray[np.int64]  # (F,)

    @property
    def order(self) -> NDArray[np.int64]:
        """(F,) the samples scene by scene, each in time."""
        return np.lexsort((self.timestamp_us, self.scene))


@dataclass(frozen=True)
class TrackPoints:
    """What of M tracked boxes the metric needs, moment by moment."""

    moment: NDArray[np.int64]  # (M,) position of the sample in ``Timeline.order``, rising
    place: NDArray[np.float64]  # (M, 2) x, y in the global frame
    label: NDArray[np.int64]  # (M,)
    score: NDArray[np.float64]  # (M,)
    track: NDArray[np.int64]  # (M,) 0, 1, ...; different in every scene

    def __len__(self) -> int:
        return len(self.moment)

    def __getitem__(self, keep: NDArray) -> TrackPoints:
        """The points selected by an index or boolean array."""
        return TrackPoints(**{name: column[keep] for name, column in vars(self).items()})


def track_points(tracked: TrackedBoxes, time: Timeline, mean_scores: bool) -> TrackPoints:
    """Boxes in the order of time, with holes filled.

    Two habits of nuscenes-devkit 1.2.0 are kept here:

    * Mean scores: every box of a prediction gets the mean score of its track's boxes, over those
      that count and over all classes that the track was given.
    * Reversed holes: in a hole, the weight of the box after it is the share of time that is still
      to go, so that the object runs backwards from its next place to its last (devkit issue 1141).
      Correct only for the middle of a hole.

    Args:
        tracked: the boxes that count, each sample's in the order of its list.
        time: of all samples.
        mean_scores: for predictions.
    """
    order = time.order
    moment_of = np.empty(len(order), np.int64)
    moment_of[order] = np.arange(len(order))
    moment = moment_of[tracked.boxes.sample]
    rows = np.argsort(moment, kind="stable")
    moment, boxes = moment[rows], tracked.boxes[rows]
    scene = time.scene[order][moment]
    _, track = np.unique(np.stack([scene, tracked.track[rows]]), axis=1, return_inverse=True)
    track = track.reshape(-1).astype(np.int64)
    points = TrackPoints(moment, boxes.translation[:, :2], boxes.label, boxes.score, track)
    by_track = np.argsort(track, kind="stable")
    if mean_scores:
        points = replace(points, score=_mean_scores(points, by_track))
    return _with_holes_filled(points, by_track, time.timestamp_us[order])


def _mean_scores(points: TrackPoints, by_track: NDArray) -> NDArray[np.float64]:
    score = points.score.copy()
    borders = np.flatnonzero(np.diff(points.track[by_track], prepend=-1, append=-1))
    for first, last in pairwise(borders):
        # np.mean and nothing else: its order of summation decides the last bit, and a threshold
        # may be exactly such a mean.
        rows = by_track[first:last]
        score[rows] = np.mean(points.score[rows])
    return score


def _with_holes_filled(
    points: TrackPoints, by_track: NDArray, timestamp_us: NDArray
) -> TrackPoints:
    left, right = by_track[:-1], by_track[1:]
    missing = points.moment[right] - points.moment[left] - 1
    missing = np.where(points.track[left] == points.track[right], np.maximum(missing, 0), 0)
    left, right = np.repeat(left, missing), np.repeat(right, missing)
    number = np.arange(len(left)) - np.repeat(np.cumsum(missing) - missing, missing)
    moment = points.moment[left] + 1 + number
    start, end = (timestamp_us[points.moment[side]] for side in (left, right))
    to_go = (end - timestamp_us[moment]).astype(np.float64) / (end - start)
    filled = TrackPoints(
        moment=moment,
        place=(1.0 - to_go)[:, None] * points.place[left] + to_go[:, None] * points.place[right],
        label=points.label[right],
        score=(1.0 - to_go) * points.score[left] + to_go * points.score[right],
        track=points.track[left],
    )
    # In a sample's list, what fills holes comes last, in the order in which tracks began.
    began = np.full(points.track.max(initial=-1) + 1, len(points))
    np.minimum.at(began, points.track, np.arange(len(points)))
    columns = zip(vars(points).values(), vars(filled).values(), strict=True)
    both = TrackPoints(*(np.concatenate(pair) for pair in columns))
    is_filled = np.arange(len(both)) >= len(points)
    place_in_list = np.where(is_filled, began[both.track], np.arange(len(both)))
    return both[np.lexsort((place_in_list, is_filled, both.moment))]
