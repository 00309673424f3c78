"""What an affinity head is told of the boxes of two frames, and what its scores say."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ...datasets.boxes import Boxes3D, Detections
from ...datasets.geometry import inverse
from ...kernels.grid import BEVGrid
from ..tracking.affinity import Affinity

NUM_POINTS = 5  # of a box: its middle and those of its edges
FAR = 50.0  # metres, a unit for distances from the vehicle
FAST = 10.0  # m/s, a unit for speeds
PAIR_FEATURES = 15
# Log sizes (3), speed, score, distance, and whether the map reaches as far; then classes.
BOX_FEATURES = 7


@dataclass(frozen=True)
class LinkedFrame:
    """One frame with its detections, as affinities to the next or the previous one need it."""

    map: Any  # (C, X, Y) features: a tensor, or in the runtime an OrtValue with a batch axis
    found: Detections  # in the BEV frame
    global_from_bev: NDArray[np.float64]  # (4, 4)
    scene: Any
    timestamp_us: int

    def seconds_after(self, before: LinkedFrame) -> float:
        """Seconds since the other frame; infinite for one of another scene."""
        if self.scene != before.scene:
            return float("inf")
        return (self.timestamp_us - before.timestamp_us) / 1e6

    def boxes_in(self, other: LinkedFrame) -> Boxes3D:
        """The boxes as they are, in the other's BEV frame."""
        transform = inverse(other.global_from_bev) @ self.global_from_bev
        return self.found.boxes.transformed(transform)


class AffinityInputs(NamedTuple):
    """N detections of a frame and M of the next one, and P pairs of them that may be one object.

    Places are (N or M, 5, 2) float32 for ``grid_sample``: the middle of a box, its front, back,
    left and right. What is told is (N or M, BOX_FEATURES + K) float32.
    """

    places_before: NDArray[np.float32]  # of earlier boxes on the earlier map
    places_ahead: NDArray[np.float32]  # on the later map, where they will be
    places_now: NDArray[np.float32]  # of later boxes on the later map
    places_behind: NDArray[np.float32]  # on the earlier map, where they were
    told_before: NDArray[np.float32]
    told_ahead: NDArray[np.float32]
    told_now: NDArray[np.float32]
    told_behind: NDArray[np.float32]
    told_pairs: NDArray[np.float32]  # (P, PAIR_FEATURES)
    pair_rows: NDArray[np.int64]  # (P,) of the earlier detection
    pair_columns: NDArray[np.int64]  # (P,) of the later one

    @property
    def possible(self) -> NDArray[np.bool_]:
        """(N, M) which pairs may be one object."""
        possible = np.zeros((len(self.told_before), len(self.told_now)), bool)
        possible[self.pair_rows, self.pair_columns] = True
        return possible


# Takes two maps and AffinityInputs; gives scores of pairs (P,), rows (N, 2) and columns (M, 2).
Scores = Callable[[Any, Any, AffinityInputs], tuple[NDArray, NDArray, NDArray]]


@dataclass(frozen=True)
class AffinityDecoder:
    """How an ``AffinityHead`` sees boxes, and how its scores become probabilities.

    Args:
        grid: the grid of the maps.
        labels: classes whose detections are linked.
        max_boxes: of a frame, only the best so many are linked.
        reach: metres between two detections, moved on by the earlier one's velocity or not, from
            which on they are not one object.
        max_age: seconds from which on two frames are not consecutive.
    """

    grid: BEVGrid
    labels: tuple[int, ...]
    max_boxes: int
    reach: float
    max_age: float

    def link(self, before: LinkedFrame, now: LinkedFrame, scores: Scores) -> Affinity | None:
        """What becomes of the detections; None if the frames are not consecutive.

        Args:
            before: the earlier frame, with all its detections.
            now: the later one.
            scores: of both frames' maps and what is told of their boxes, as :meth:`affinity` takes
                them.
        """
        if not 0 < now.seconds_after(before) <= self.max_age:
            return None
        places = self.rows(before.found), self.rows(now.found)
        frames = (replace(f, found=f.found[p]) for f, p in zip((before, now), places))
        inputs = self.inputs(*frames)
        return self.affinity(places, inputs, *scores(before.map, now.map, inputs))

    def rows(self, found: Detections) -> NDArray[np.int64]:
        """Places in the list of the detections that are linked, best first."""
        rows = np.flatnonzero(np.isin(found.boxes.label, self.labels))
        order = np.argsort(-found.score[rows], kind="stable")
        return rows[order[: self.max_boxes]]

    def best(self, frame: LinkedFrame) -> LinkedFrame:
        """The frame with the detections that are linked alone."""
        return replace(frame, found=frame.found[self.rows(frame.found)])

    def inputs(self, before: LinkedFrame, now: LinkedFrame) -> AffinityInputs:
        """What the head is told of two frames of :meth:`best`."""
        seconds, later = now.seconds_after(before), now.found.boxes
        earlier = before.boxes_in(now)
        ahead = moved(earlier, seconds)
        behind = moved(now.boxes_in(before), -seconds)
        pair = np.nonzero(gaps(earlier, later, seconds) < self.reach)
        boxes = before.found.boxes, ahead, later, behind
        scores = before.found.score, before.found.score, now.found.score, now.found.score
        places = [sampling_places(b, self.grid) for b in boxes]
        told = [box_features(b, s, self.grid, self.labels) for b, s in zip(boxes, scores)]
        of_pairs = pair_features(earlier, later, seconds, pair)
        return AffinityInputs._make([*places, *told, of_pairs, *pair])

    def affinity(
        self,
        places: tuple[NDArray[np.int64], NDArray[np.int64]],
        inputs: AffinityInputs,
        pair: NDArray,
        row: NDArray,
        column: NDArray,
    ) -> Affinity:
        """Probabilities of scores.

        Args:
            places: (N,) and (M,), :meth:`rows` of both frames.
            inputs: what the head was told.
            pair: (P,) scores of the pairs.
            row: (N, 2) scores of being dead and missed.
            column: (M, 2) scores of being newborn and a false positive.
        """
        N, M = len(row), len(column)
        match = np.full((N, M), -np.inf, np.float32)
        match[inputs.pair_rows, inputs.pair_columns] = pair
        forward = softmax(np.concatenate([match, row], 1))
        backward = softmax(np.concatenate([match.T, column], 1))
        return Affinity(
            *places,
            match=(forward[:, :M] + backward[:, :N].T) / 2,
            dead=forward[:, M],
            missed=forward[:, M + 1],
            newborn=backward[:, N],
            false_positive=backward[:, N + 1],
        )


def softmax(scores: NDArray) -> NDArray:
    """Along the last axis; one score of each row is finite."""
    raised = np.exp(scores - scores.max(-1, keepdims=True))
    return raised / raised.sum(-1, keepdims=True)


def moved(boxes: Boxes3D, seconds: float) -> Boxes3D:
    """The boxes after that time at their own velocity, as far as it is known."""
    center = boxes.center.copy()
    center[:, :2] += np.nan_to_num(boxes.velocity) * seconds
    return replace(boxes, center=center)


def sampling_places(boxes: Boxes3D, grid: BEVGrid) -> NDArray[np.float32]:
    """The middle of each of M boxes and the middles of its edges on a map.

    Returns:
        (M, 5, 2): middle, front, back, left, right, for ``grid_sample`` with align_corners False.
    """
    (nx, ny), half = grid.shape, boxes.size[:, :2] / 2
    cos, sin = np.cos(boxes.yaw), np.sin(boxes.yaw)
    along = half[:, :1] * np.stack([cos, sin], 1)
    across = half[:, 1:] * np.stack([-sin, cos], 1)
    steps = np.stack([0 * along, along, -along, across, -across], 1)  # (M, 5, 2)
    i, j = grid.to_cells(*np.moveaxis(boxes.center[:, None, :2] + steps, -1, 0))
    # grid_sample wants the last axis of the map first, and edges at -1 and 1.
    return np.stack([2 * j / ny - 1, 2 * i / nx - 1], -1).astype(np.float32)


def box_features(
    boxes: Boxes3D, score: NDArray, grid: BEVGrid, labels: tuple[int, ...]
) -> NDArray[np.float32]:
    """(M, BOX_FEATURES + K) of boxes in a map's frame, all about 1 in size.

    Args:
        boxes: M boxes.
        score: (M,) of their detection.
        grid: of the map.
        labels: K classes that are told apart.
    """
    x, y = boxes.center[:, 0], boxes.center[:, 1]
    velocity = np.nan_to_num(boxes.velocity)
    probability = np.clip(score, 1e-4, 1 - 1e-4)
    columns = [
        np.log(np.maximum(boxes.size, 1e-2)),
        np.hypot(velocity[:, :1], velocity[:, 1:]) / FAST,
        np.log(probability / (1 - probability))[:, None] / 2,
        np.hypot(x, y)[:, None] / FAR,
        grid.contains(x, y)[:, None],
        boxes.label[:, None] == np.array(labels)[None],
    ]
    return np.concatenate(columns, 1).astype(np.float32)


def pair_features(
    before: Boxes3D, now: Boxes3D, seconds: float, pair: tuple[NDArray, ...]
) -> NDArray[np.float32]:
    """(P, PAIR_FEATURES) of pairs of boxes of two moments, given in one frame.

    Displacements are along and across the later box, which is all that a turn of the frame leaves.

    Args:
        before: N boxes, where they were.
        now: M boxes.
        seconds: between them.
        pair: (P,) and (P,), indices into both.
    """
    first, second = before[pair[0]], now[pair[1]]
    cos, sin = np.cos(second.yaw), np.sin(second.yaw)

    def in_axes(vector: NDArray) -> NDArray:
        x, y = vector[:, 0], vector[:, 1]
        return np.stack([x * cos + y * sin, y * cos - x * sin], 1)

    still = second.center - first.center
    on, back = (np.nan_to_num(b.velocity) * seconds for b in (first, second))
    turn = second.yaw - first.yaw
    columns = [
        in_axes(still[:, :2] - on),
        np.linalg.norm(still[:, :2] - on, axis=1)[:, None],
        in_axes(still[:, :2] - back),
        in_axes(still[:, :2]),
        np.linalg.norm(still[:, :2], axis=1)[:, None],
        still[:, 2:],
        np.log(np.maximum(second.size, 1e-2) / np.maximum(first.size, 1e-2)),
        np.abs(np.cos(turn))[:, None],  # detectors mistake front for back
        np.cos(turn)[:, None],
        np.full((len(turn), 1), seconds),
    ]
    return np.concatenate(columns, 1).astype(np.float32)


def gaps(before: Boxes3D, now: Boxes3D, seconds: float) -> NDArray[np.float64]:
    """(N, M) metres on the ground between boxes of one class, infinite for those of two.

    The earlier ones at where they were, or at where their velocity takes them, what is nearer:
    detected velocities are unreliable.
    """
    places = np.stack([before.center[:, :2], moved(before, seconds).center[:, :2]])
    distance = np.linalg.norm(places[:, :, None] - now.center[None, None, :, :2], axis=-1)
    same = before.label[:, None] == now.label[None]
    return np.where(same, distance.min(0), np.inf)
