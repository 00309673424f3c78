"""The default tracker: a Kalman filter per object, and association in two stages by score."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace

import numpy as np
from numpy.typing import NDArray

from ...datasets.boxes import Boxes3D, Detections
from ...datasets.nuscenes.classes import DETECTION_CLASSES
from .affinity import Affinity
from .association import associate
from .detections import TrackedDetections, checked, seconds_since
from .motion import MEASURED, STATE, correct_, predict_
from .profiles import PROFILES, Profile

TURN_SPREAD = 0.3  # rad/s, of the turn rate of an object that was just met


@dataclass(frozen=True)
class Tracks:
    """N objects at a moment: all that a tracker knows."""

    mean: NDArray[np.float64]  # (N, 6) x, y, vx, vy, yaw, turn rate
    covariance: NDArray[np.float64]  # (N, 6, 6)
    height: NDArray[np.float64]  # (N,) z of the middle
    size: NDArray[np.float64]  # (N, 3) length, width, height
    evidence: NDArray[np.float64]  # (N,) sum of the scores of its detections
    score: NDArray[np.float64]  # (N,) confidence that it exists, 0..1
    label: NDArray[np.int64]  # (N,)
    attribute: NDArray[np.int64]  # (N,) as last detected
    track: NDArray[np.int64]  # (N,)
    hits: NDArray[np.int64]  # (N,) detections so far
    unseen: NDArray[np.float64]  # (N,) seconds since the last one
    source: NDArray[np.int64]  # (N,) its place among the detections of the last step, -1 for none

    def __len__(self) -> int:
        return len(self.track)

    def __getitem__(self, keep: NDArray) -> Tracks:
        """The tracks selected by an index or boolean array."""
        return Tracks(**{f.name: getattr(self, f.name)[keep] for f in fields(self)})

    @property
    def boxes(self) -> Boxes3D:
        """Where they are."""
        center = np.column_stack([self.mean[:, :2], self.height])
        return Boxes3D(center, self.size, self.mean[:, 4], self.mean[:, 2:4], self.label)

    def followed_by(self, others: Tracks) -> Tracks:
        """These and others."""
        return Tracks(
            **{
                f.name: np.concatenate([getattr(self, f.name), getattr(others, f.name)])
                for f in fields(self)
            }
        )


@dataclass(frozen=True)
class TrackerState:
    """What ``KalmanTracker.step`` takes and gives: plain arrays and two numbers."""

    tracks: Tracks
    next_track: int = 0
    timestamp_us: int | None = None


@dataclass(frozen=True)
class KalmanTracker:
    """Predict every track, give it a detection, correct it.

    Strong detections choose first. What they leave is offered the weak ones, within a narrower
    gate: a weak detection says more about an object that is known than about a new one (Zhang et
    al., ByteTrack, ECCV 2022). The confidence of a track grows with every detection, as if these
    were independent, and fades while none comes (Benbarka et al., IROS 2021).

    A learned affinity, where there is one, helps to choose within the gates; it lowers the score
    of detections that it takes for false positives, and the confidence of tracks that end without
    being missed (as in Sadjadpour et al., ShaSTA, RA-L 2023).

    Args:
        profiles: class -> motion and noise; classes that are not named are not tracked.
        strong_score: detections from this score on choose first.
        weak_score: those below this one are ignored.
        weak_gate: share of the gate that weak detections are held to.
        birth_score: a detection that continues nothing begins a track from this score on. Low, for
            AMOTA looks for the best threshold itself, and objects on new roads have lower scores
            than those trained on.
        fading: confidence that a track loses in a second without a detection.
        max_unseen: seconds that a track lives on without a detection.
        max_gap: seconds between two moments after which all tracks have ended.
        affinity_weight: share of a learned affinity in the choice of pairs, 0..1.
        refinement: share of a learned affinity in scores, 0..1: the exponent of its probability,
            while a detection's own score has the rest.
        class_names: what the labels of the detections mean.
    """

    profiles: Mapping[str, Profile] = field(default_factory=lambda: PROFILES)
    strong_score: float = 0.3
    weak_score: float = 0.05
    weak_gate: float = 0.6
    birth_score: float = 0.1
    fading: float = 0.3
    max_unseen: float = 1.5
    max_gap: float = 2.0
    affinity_weight: float = 0.5
    refinement: float = 0.5
    class_names: tuple[str, ...] = DETECTION_CLASSES

    def start(self) -> TrackerState:
        """No track."""
        return TrackerState(self._born(Detections(Boxes3D.empty(), *_none()), _none()[1], 0))

    def step(
        self,
        state: TrackerState,
        detections: Detections,
        timestamp_us: int,
        affinity: Affinity | None = None,
    ) -> tuple[TrackerState, TrackedDetections]:
        """See ``Tracker.step``."""
        seconds = seconds_since(state.timestamp_us, timestamp_us)
        if seconds > self.max_gap:
            state = replace(self.start(), next_track=state.next_track)
        source = self._of_interest(checked(detections))
        found = self._refined(detections[source], source, affinity)
        tracks = self._predicted(state.tracks, seconds)
        known = None if affinity is None else affinity.matches(tracks.source, source)
        match = self._matched(tracks, found, known)
        seen = np.flatnonzero(match >= 0)
        kept = self._corrected(tracks[seen], found[match[seen]], source[match[seen]])
        free = np.ones(len(found), bool)
        free[match[seen]] = False
        new = free & (found.score >= self.birth_score)
        born = self._born(found[new], source[new], state.next_track)
        lost = self._lost(tracks[(match < 0) & (tracks.unseen <= self.max_unseen)], affinity)
        present = kept.followed_by(born)
        following = TrackerState(
            present.followed_by(lost), state.next_track + len(born), timestamp_us
        )
        best = present[np.argsort(-present.score, kind="stable")]
        return following, TrackedDetections(
            Detections(best.boxes, best.score, best.attribute), best.track
        )

    def _of_interest(self, found: Detections) -> NDArray[np.int64]:
        """Places of the detections that are looked at."""
        tracked = np.array([name in self.profiles for name in self.class_names])
        return np.flatnonzero(tracked[found.boxes.label] & (found.score >= self.weak_score))

    def _refined(
        self, found: Detections, source: NDArray[np.int64], affinity: Affinity | None
    ) -> Detections:
        if affinity is None:
            return found
        real = 1 - affinity.of_columns(affinity.false_positive, source)
        pooled = found.score ** (1 - self.refinement) * real**self.refinement
        return replace(found, score=np.where(np.isnan(real), found.score, pooled))

    def _lost(self, tracks: Tracks, affinity: Affinity | None) -> Tracks:
        """Tracks without a detection at this step."""
        score = tracks.score
        if affinity is not None:
            missed = affinity.of_rows(affinity.missed, tracks.source)
            dead = affinity.of_rows(affinity.dead, tracks.source)
            there = (missed / np.maximum(missed + dead, 1e-9)) ** self.refinement
            score = np.where(np.isnan(there), score, score * there)
        return replace(tracks, score=score, source=np.full(len(tracks), -1, np.int64))

    def _column(self, label: NDArray, *names: str) -> NDArray[np.float64]:
        """(N, len(names)) values of the profiles of N objects."""
        empty = (0.0,) * len(names)
        table = [
            [float(getattr(self.profiles[c], name)) for name in names]
            if c in self.profiles
            else empty
            for c in self.class_names
        ]
        return np.array(table)[label].reshape(-1, len(names))

    def _predicted(self, tracks: Tracks, seconds: float) -> Tracks:
        mean, covariance = tracks.mean.copy(), tracks.covariance.copy()
        noise = self._column(tracks.label, "acceleration", "yaw_walk", "turn_acceleration", "turns")
        noise[:, 2] *= noise[:, 3]
        predict_(mean, covariance, noise[:, :3], seconds)
        return replace(
            tracks,
            mean=mean,
            covariance=covariance,
            score=np.maximum(tracks.score - self.fading * seconds, 0.0),
            unseen=tracks.unseen + seconds,
        )

    def _matched(
        self, tracks: Tracks, found: Detections, known: NDArray[np.float64] | None
    ) -> NDArray[np.int64]:
        """(N,) the detection of each track, -1 for none."""
        gate = self._column(tracks.label, "gate")[:, 0]
        by_giou = self._column(tracks.label, "by_giou")[:, 0] > 0
        strong = np.flatnonzero(found.score >= self.strong_score)
        weak = np.flatnonzero(found.score < self.strong_score)
        match, boxes = np.full(len(tracks), -1, np.int64), tracks.boxes
        for part, share in ((strong, 1.0), (weak, self.weak_gate)):
            left = np.flatnonzero(match < 0)
            learned = None if known is None else known[np.ix_(left, part)]
            chosen = associate(
                *(boxes[left], found.boxes[part], by_giou[left], gate[left] * share),
                *(learned, self.affinity_weight),
            )
            match[left] = np.append(part, -1)[chosen]
        return match

    def _corrected(self, tracks: Tracks, found: Detections, source: NDArray[np.int64]) -> Tracks:
        mean, covariance = tracks.mean.copy(), tracks.covariance.copy()
        correct_(mean, covariance, _measured(found), self._errors(found))
        evidence = tracks.evidence + found.score
        share = found.score / np.maximum(evidence, 1e-9)
        size = tracks.size + share[:, None] * (found.boxes.size - tracks.size)
        # The ground rises and falls under an object; half the way follows it and halves the noise.
        height = (tracks.height + found.boxes.center[:, 2]) / 2
        return replace(
            tracks,
            mean=mean,
            covariance=covariance,
            height=height,
            size=size,
            evidence=evidence,
            score=1 - (1 - tracks.score) * (1 - found.score),
            attribute=found.attribute,
            hits=tracks.hits + 1,
            unseen=np.zeros(len(tracks)),
            source=source,
        )

    def _born(self, found: Detections, source: NDArray[np.int64], first: int) -> Tracks:
        count = len(found)
        errors, measured = self._errors(found), np.nan_to_num(_measured(found))
        spread = np.zeros((count, STATE))
        spread[:, :MEASURED] = errors
        unknown = np.isnan(found.boxes.velocity)
        spread[:, 2:4][unknown] = 10.0  # m/s: it may be a car that passes
        turns = self._column(found.boxes.label, "turns")[:, 0]
        spread[:, 5] = TURN_SPREAD * turns
        covariance = np.zeros((count, STATE, STATE))
        covariance[:, range(STATE), range(STATE)] = spread**2
        return Tracks(
            mean=np.column_stack([measured, np.zeros(count)]),
            covariance=covariance,
            height=found.boxes.center[:, 2],
            size=found.boxes.size,
            evidence=np.asarray(found.score, np.float64),
            score=np.asarray(found.score, np.float64),
            label=found.boxes.label,
            attribute=found.attribute,
            track=first + np.arange(count),
            hits=np.ones(count, np.int64),
            unseen=np.zeros(count),
            source=source,
        )

    def _errors(self, found: Detections) -> NDArray[np.float64]:
        """(M, 5) of a measurement."""
        names = ("place_error", "place_error", "speed_error", "speed_error", "yaw_error")
        return self._column(found.boxes.label, *names)


def _measured(found: Detections) -> NDArray[np.float64]:
    boxes = found.boxes
    return np.column_stack([boxes.center[:, :2], boxes.velocity, boxes.yaw])


def _none() -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    return np.zeros(0), np.zeros(0, np.int64)
