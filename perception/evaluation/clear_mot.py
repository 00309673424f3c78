"""Who is followed by which track, moment by moment: the events of CLEAR MOT.

At every moment an object first keeps the track that it was last matched to, if that is still near
enough; the rest are assigned so that as many as possible are matched, at the least total distance.
An object that is matched to another track than before is a switch (Bernardin and Stiefelhagen,
EURASIP JIVP 2008, as py-motmetrics 1.4.0 counts them).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ...kernels.numba_assignment import assign_dense
from ...kernels.threads import compiled_in_order
from .tracks import TrackPoints

_SWITCH, _MATCH = 1, 2  # what became of a predicted box
_COUNTED, _FOUND, _FRAGMENTS, _BEGIN, _FIRST, _LAST, _LONGEST_GAP = range(7)  # of an object


@dataclass(frozen=True)
class Events:
    """What happened in the whole set at one score threshold."""

    num_frames: int  # moments with any object or prediction
    matches: int  # without switches
    switches: int
    false_positives: int
    misses: int
    distance: float  # sum over matches and switches, metres
    count: NDArray[np.int64]  # (T,) boxes of each object
    found: NDArray[np.int64]  # (T,) of them, matched or switched
    fragments: NDArray[np.int64]  # (T,) times that it was lost and found again
    delay: NDArray[np.int64]  # (T,) moments until it was found first; -1 if it never was
    longest_gap: NDArray[np.int64]  # (T,) moments, from its first to its last box
    match_scores: NDArray[np.float64]  # of the matches without switches


class Matcher:
    """The objects and predictions of one class, and which of them are near each other.

    Args:
        truth: G objects' boxes.
        predicted: P boxes.
        num_moments: of all scenes.
        scene: (num_moments,) rising; identities end with their scene.
        max_distance: metres; pairs at or beyond it are never matched.
    """

    def __init__(
        self,
        truth: TrackPoints,
        predicted: TrackPoints,
        num_moments: int,
        scene: NDArray[np.int64],
        max_distance: float,
    ) -> None:
        moments = np.arange(num_moments + 1)
        self.truth, self.predicted, self.scene = truth, predicted, scene
        self.truth_start = np.searchsorted(truth.moment, moments)
        self.predicted_start = np.searchsorted(predicted.moment, moments)
        self.num_objects = int(truth.track.max(initial=-1)) + 1
        self.num_tracks = int(predicted.track.max(initial=-1)) + 1
        self.pairs = self._near_pairs(max_distance)

    def _near_pairs(self, max_distance: float) -> tuple[NDArray, NDArray, NDArray]:
        """Where each truth box's pairs begin, and prediction and distance of each pair."""
        count = np.zeros(len(self.truth) + 1, np.int64)
        other, distance = [np.zeros(0, np.int64)], [np.zeros(0)]
        both = (np.diff(self.truth_start) > 0) & (np.diff(self.predicted_start) > 0)
        for moment in np.flatnonzero(both):
            g, last_g = self.truth_start[moment : moment + 2]
            p, last_p = self.predicted_start[moment : moment + 2]
            between = _distances(self.truth.place[g:last_g], self.predicted.place[p:last_p])
            i, j = np.nonzero(between < max_distance)
            count[g + 1 : last_g + 1] = np.bincount(i, minlength=last_g - g)
            other.append(p + j)
            distance.append(between[i, j])
        return np.cumsum(count), np.concatenate(other), np.concatenate(distance)

    def events(self, threshold: float = -np.inf) -> Events:
        """Count what happens when predictions below a score are left out."""
        kept = self.predicted.score >= threshold
        fate = np.zeros(len(self.predicted), np.int64)
        objects = np.zeros((self.num_objects, 7), np.int64)
        totals = _follow(
            self.truth_start, self.predicted_start, self.scene, self.truth.track,
            self.predicted.track, kept, *self.pairs, self.num_tracks, fate, objects,
        )  # fmt: skip
        num_frames, matches, switches, false_positives, misses, distance = totals
        return Events(
            num_frames, matches, switches, false_positives, misses, distance,
            count=objects[:, _COUNTED],
            found=objects[:, _FOUND],
            fragments=objects[:, _FRAGMENTS],
            delay=np.where(
                objects[:, _FOUND] > 0, objects[:, _FIRST] - objects[:, _BEGIN], -1
            ),
            longest_gap=objects[:, _LONGEST_GAP],
            match_scores=self.predicted.score[fate == _MATCH],
        )  # fmt: skip


def _distances(a: NDArray, b: NDArray) -> NDArray[np.float64]:
    """(G, 2), (P, 2) -> (G, P) metres.

    A habit of the devkit: the square is expanded, a a - 2 a b + b b, as scikit-learn does it. Far
    from the origin of the map that loses digits; equal places may be 1e-5 m apart.
    """
    squared = -2 * (a @ b.T)
    squared += np.einsum("ij,ij->i", a, a)[:, None]
    squared += np.einsum("ij,ij->i", b, b)[None]
    return np.sqrt(np.maximum(squared, 0))


@compiled_in_order
def _follow(
    truth_start,  # (moments + 1,) where each moment's objects begin
    predicted_start,  # (moments + 1,)
    scene,  # (moments,)
    object_of,  # (G,)
    track_of,  # (P,)
    kept,  # (P,) bool
    pair_start,  # (G + 1,)
    pair_other,  # (pairs,) prediction
    pair_distance,  # (pairs,)
    num_tracks,
    fate,  # (P,) written: _SWITCH or _MATCH; starts at 0
    objects,  # (T, 7) written, zero at the start
):
    track_of_object = np.full(len(objects), -1, np.int64)
    taken = np.zeros(len(fate), np.bool_)
    partner = np.full(len(object_of), -1, np.int64)
    matched_at = np.full(num_tracks, -1, np.int64)
    num_frames, matches, switches, false_positives, misses, distance = 0, 0, 0, 0, 0, 0.0
    for moment in range(len(truth_start) - 1):
        g0, g1 = truth_start[moment], truth_start[moment + 1]
        p0, p1 = predicted_start[moment], predicted_start[moment + 1]
        num_kept = 0
        for p in range(p0, p1):
            num_kept += kept[p]
        if g0 == g1 and num_kept == 0:
            continue  # no frame at all, for the metric
        num_frames += 1
        for g in range(g0, g1):  # keep the track
            before = track_of_object[object_of[g]]
            if before < 0:
                continue
            for p in range(p0, p1):
                if kept[p] and not taken[p] and track_of[p] == before:
                    if _pair_distance(g, p, pair_start, pair_other, pair_distance) >= 0:
                        partner[g], taken[p] = p, True
                        fate[p] = _MATCH
                    break  # of an id that comes twice, only the first box is looked at
        _assign_rest(g0, g1, p0, p1, kept, taken, partner, pair_start, pair_other, pair_distance)
        for g in range(g0, g1):
            thing, p = object_of[g], partner[g]
            if p >= 0:
                if fate[p] != _MATCH:
                    before = track_of_object[thing]
                    switched = before >= 0 and before != track_of[p]
                    fate[p] = _SWITCH if switched else _MATCH
                    track_of_object[thing] = track_of[p]
                if fate[p] == _MATCH:
                    matches += 1
                    matched_at[track_of[p]] = moment
                else:
                    switches += 1
                distance += _pair_distance(g, p, pair_start, pair_other, pair_distance)
            else:
                misses += 1
            _record(objects[thing], moment, p >= 0)
        for p in range(p0, p1):
            if kept[p]:
                false_positives += not taken[p]
                # A habit of the devkit: which boxes are matches is asked by id. Of an id that
                # comes twice in a sample, both count.
                if matched_at[track_of[p]] == moment:
                    fate[p] = _MATCH
    return num_frames, matches, switches, false_positives, misses, distance


@compiled_in_order
def _pair_distance(g, p, pair_start, pair_other, pair_distance):
    """Distance of a near pair, -1 for one that is not near."""
    for k in range(pair_start[g], pair_start[g + 1]):
        if pair_other[k] == p:
            return pair_distance[k]
    return -1.0


@compiled_in_order
def _assign_rest(g0, g1, p0, p1, kept, taken, partner, pair_start, pair_other, pair_distance):
    """Match the objects of a moment that kept no track."""
    open_rows, crowded = 0, False
    claims = np.zeros(p1 - p0, np.int64)
    for g in range(g0, g1):
        if partner[g] >= 0:
            continue
        choices, only = 0, -1
        for k in range(pair_start[g], pair_start[g + 1]):
            p = pair_other[k]
            if kept[p] and not taken[p]:
                choices, only = choices + 1, p
                claims[p - p0] += 1
                crowded |= claims[p - p0] > 1
        open_rows += choices > 0
        crowded |= choices > 1
        if choices == 1:
            partner[g] = only  # stays, if nobody else wants it
    if open_rows == 0:
        return
    if not crowded:
        for g in range(g0, g1):
            if partner[g] >= 0:
                taken[partner[g]] = True
        return
    cost = np.full((g1 - g0, p1 - p0), np.inf)
    for g in range(g0, g1):
        if partner[g] >= 0 and taken[partner[g]]:
            continue
        partner[g] = -1
        for k in range(pair_start[g], pair_start[g + 1]):
            p = pair_other[k]
            if kept[p] and not taken[p]:
                cost[g - g0, p - p0] = pair_distance[k]
    chosen = assign_dense(cost)
    for g in range(g0, g1):
        if chosen[g - g0] >= 0:
            partner[g] = p0 + chosen[g - g0]
            taken[partner[g]] = True


@compiled_in_order
def _record(thing, moment, found):
    """Keep the books of an object: see the columns at the top."""
    if thing[_COUNTED] == 0:
        thing[_BEGIN], thing[_LAST] = moment, moment - 1
    thing[_COUNTED] += 1
    if found:
        if thing[_FOUND] == 0:
            thing[_FIRST] = moment
        elif moment > thing[_LAST] + 1:
            thing[_FRAGMENTS] += 1
        thing[_FOUND] += 1
        thing[_LAST] = moment
    thing[_LONGEST_GAP] = max(thing[_LONGEST_GAP], moment - thing[_LAST])
