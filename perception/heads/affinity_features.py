"""What the affinity head is told: map features at boxes, and how two boxes differ."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from ...datasets.boxes import Boxes3D, Detections
from ...datasets.geometry import inverse
from ...kernels.grid import BEVGrid
from ..layers import full_precision

NUM_POINTS = 5  # of a box: its middle and those of its edges
FAR = 50.0  # metres, a unit for distances from the vehicle
FAST = 10.0  # m/s, a unit for speeds
PAIR_FEATURES = 15
# Log sizes (3), speed, score, distance, and whether the map reaches as far; then classes.
BOX_FEATURES = 7


@dataclass(frozen=True)
class LinkedFrame:
    """One frame with its detections, as affinities to the next or the previous one need it."""

    map: Tensor  # (C, X, Y) features
    found: Detections  # in the BEV frame
    global_from_bev: NDArray[np.float64]  # (4, 4)
    scene: int
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


def moved(boxes: Boxes3D, seconds: float) -> Boxes3D:
    """The boxes after that time at their own velocity, as far as it is known."""
    center = boxes.center.copy()
    center[:, :2] += np.nan_to_num(boxes.velocity) * seconds
    return replace(boxes, center=center)


def sample_boxes(bev: Tensor, boxes: Boxes3D, grid: BEVGrid) -> Tensor:
    """The map at the middle of each box and at the middles of its edges, bilinearly.

    Args:
        bev: (C, X, Y) on the grid; zero beside it.
        boxes: M boxes in the map's frame.
        grid: of the map.

    Returns:
        (M, 5 * C): middle, front, back, left, right.
    """
    (nx, ny), half = grid.shape, boxes.size[:, :2] / 2
    cos, sin = np.cos(boxes.yaw), np.sin(boxes.yaw)
    along = half[:, :1] * np.stack([cos, sin], 1)
    across = half[:, 1:] * np.stack([-sin, cos], 1)
    steps = np.stack([0 * along, along, -along, across, -across], 1)  # (M, 5, 2)
    i, j = grid.to_cells(*np.moveaxis(boxes.center[:, None, :2] + steps, -1, 0))
    # grid_sample wants the last axis of the map first, and edges at -1 and 1.
    place = torch.from_numpy(np.stack([2 * j / ny - 1, 2 * i / nx - 1], -1)).float()
    with full_precision(bev):
        found = F.grid_sample(
            bev[None].float(), place[None].to(bev.device), align_corners=False
        )  # (1, C, M, 5)
    return found[0].permute(1, 2, 0).flatten(1)


def box_features(boxes: Boxes3D, score: NDArray, grid: BEVGrid, labels: NDArray) -> Tensor:
    """(M, BOX_FEATURES + K) of boxes in a map's frame, all about 1 in size.

    Args:
        boxes: M boxes.
        score: (M,) of their detection.
        grid: of the map.
        labels: (K,) the classes that are told apart.
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
        boxes.label[:, None] == labels[None],
    ]
    return torch.from_numpy(np.concatenate(columns, 1).astype(np.float32))


def pair_features(
    before: Boxes3D, now: Boxes3D, seconds: float, pair: tuple[NDArray, NDArray]
) -> Tensor:
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
    return torch.from_numpy(np.concatenate(columns, 1).astype(np.float32))


def gaps(before: Boxes3D, now: Boxes3D, seconds: float) -> NDArray[np.float64]:
    """(N, M) metres on the ground between boxes of one class, infinite for those of two.

    The earlier ones at where they were, or at where their velocity takes them, what is nearer:
    detected velocities are unreliable.
    """
    places = np.stack([before.center[:, :2], moved(before, seconds).center[:, :2]])
    distance = np.linalg.norm(places[:, :, None] - now.center[None, None, :, :2], axis=-1)
    same = before.label[:, None] == now.label[None]
    return np.where(same, distance.min(0), np.inf)
