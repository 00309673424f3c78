"""The plain baseline: nearest track first, moved by the detected velocity.

As published with CenterPoint (Yin et al., CVPR 2021): a detection is moved back by its own velocity
to the time of the frame before, and takes the nearest free track of its class. The best detection
chooses first. There is no filter; what comes out is what was detected, with a number.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from ...datasets.boxes import Detections
from ...datasets.nuscenes.classes import DETECTION_CLASSES
from ...kernels.threads import compiled_in_order
from .affinity import Affinity
from .detections import TrackedDetections, checked, seconds_since

# Metres between a track and a detection moved back to its time; CenterPoint's values, which are
# errors of velocity on nuScenes.
MAX_DISTANCE = {
    "car": 4.0,
    "truck": 4.0,
    "bus": 5.5,
    "trailer": 3.0,
    "pedestrian": 1.0,
    "motorcycle": 13.0,
    "bicycle": 3.0,
}


@dataclass(frozen=True)
class GreedyTracks:
    """The state: N tracks, where they are at a moment if they went on as they were last seen."""

    place: NDArray[np.float64]  # (N, 2) x, y
    velocity: NDArray[np.float64]  # (N, 2)
    label: NDArray[np.int64]  # (N,)
    track: NDArray[np.int64]  # (N,)
    unseen: NDArray[np.int64]  # (N,) steps since it was detected
    next_track: int = 0
    timestamp_us: int | None = None


@dataclass(frozen=True)
class GreedyTracker:
    """CenterPoint's tracker.

    Args:
        max_distance: class -> metres; classes that are not named are not tracked.
        max_unseen: steps that a track lives on without a detection.
        max_gap: seconds between two moments after which all tracks have ended.
        class_names: what the labels of the detections mean.
    """

    max_distance: Mapping[str, float] = field(default_factory=lambda: MAX_DISTANCE)
    max_unseen: int = 3
    max_gap: float = 2.0
    class_names: tuple[str, ...] = DETECTION_CLASSES

    def start(self) -> GreedyTracks:
        """No track."""
        none, whole = np.zeros((0, 2)), np.zeros(0, np.int64)
        return GreedyTracks(none, none, whole, whole, whole)

    def step(
        self,
        state: GreedyTracks,
        detections: Detections,
        timestamp_us: int,
        affinity: Affinity | None = None,
    ) -> tuple[GreedyTracks, TrackedDetections]:
        """See ``Tracker.step``."""
        if affinity is not None:
            raise ValueError("the greedy tracker goes by distance alone; it takes no affinity")
        seconds = seconds_since(state.timestamp_us, timestamp_us)
        if seconds > self.max_gap:
            state = replace(self.start(), next_track=state.next_track)
        reach = np.array([self.max_distance.get(name, -1.0) for name in self.class_names])
        found = checked(detections)[reach[detections.boxes.label] > 0]
        found = found[np.argsort(-found.score, kind="stable")]
        label, place = found.boxes.label, np.ascontiguousarray(found.boxes.center[:, :2])
        velocity = np.nan_to_num(found.boxes.velocity)
        row = _nearest_free(
            place - velocity * seconds, label, reach[label], state.place, state.label
        )
        new = row < 0
        track = np.append(state.track, -1)[row]
        track[new] = state.next_track + np.arange(new.sum())
        lost = np.setdiff1d(np.arange(len(state.track)), row)
        lost = lost[state.unseen[lost] < self.max_unseen]
        moved = state.place[lost] + state.velocity[lost] * seconds
        following = GreedyTracks(
            place=np.concatenate([place, moved]),
            velocity=np.concatenate([velocity, state.velocity[lost]]),
            label=np.concatenate([label, state.label[lost]]),
            track=np.concatenate([track, state.track[lost]]),
            unseen=np.concatenate([np.zeros(len(row), np.int64), state.unseen[lost] + 1]),
            next_track=state.next_track + int(new.sum()),
            timestamp_us=timestamp_us,
        )
        return following, TrackedDetections(found, track)


@compiled_in_order
def _nearest_free(place, label, reach, track_place, track_label):
    """(M,) index of the track that each detection takes, in order; -1 for none."""
    taken = np.zeros(len(track_place), np.bool_)
    row = np.full(len(place), -1, np.int64)
    for i in range(len(place)):
        nearest = reach[i] * reach[i]
        for k in range(len(track_place)):
            if taken[k] or track_label[k] != label[i]:
                continue
            dx, dy = place[i, 0] - track_place[k, 0], place[i, 1] - track_place[k, 1]
            distance = dx * dx + dy * dy
            if distance <= nearest and (row[i] < 0 or distance < nearest):
                nearest, row[i] = distance, k
        if row[i] >= 0:
            taken[row[i]] = True
    return row
