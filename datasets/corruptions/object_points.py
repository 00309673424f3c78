"""What happens to LiDAR points inside annotated boxes; the boxes stay as they are."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from .regions import boxes_at, key_ego_from_lidar, object_of_points
from .sensors import SweepContext, SweepStep


@dataclass(frozen=True)
class ThinObjects(SweepStep):
    """Lose a share of every object's points.

    nuScenes-C: ``"random"`` 0.1, 0.2, 0.3, 0.4, 0.5 (local density); ``"patch"`` 0.3, 0.4, 0.5,
    0.6, 0.7 (local cutout), where the original measures distance over intensity too.

    Args:
        share: of an object's points, rounded down.
        choice: points at ``"random"``, or the ``"patch"`` nearest to a random point of the object.
        with_intensity: measure distance over x, y, z and intensity.
    """

    share: float
    choice: Literal["random", "patch"] = "random"
    with_intensity: bool = False

    def __post_init__(self) -> None:
        if not 0 <= self.share <= 1 or self.choice not in ("random", "patch"):
            raise ValueError(
                f'share is {self.share:g}, choice "{self.choice}"; give 0 <= share <= 1 and '
                '"random" or "patch"'
            )

    def is_identity(self) -> bool:
        """See :class:`SweepStep`."""
        return self.share == 0

    def corrupt(self, points: NDArray[np.float32], context: SweepContext) -> NDArray[np.float32]:
        """See :class:`SweepStep`."""
        inside, owner, random = *_inside(points, context), context.random()
        if not len(inside):
            return points
        order = np.lexsort((random.random(len(inside)), owner))  # shuffled within each object
        inside, owner = inside[order], owner[order]
        if self.choice == "patch":
            columns = points[inside, : 4 if self.with_intensity else 3].astype(np.float64)
            first = np.searchsorted(owner, owner)  # each object's first point is the random one
            order = np.lexsort((np.linalg.norm(columns - columns[first], axis=1), owner))
            inside, owner = inside[order], owner[order]
        start, end = np.searchsorted(owner, owner), np.searchsorted(owner, owner, "right")
        lost = np.arange(len(owner)) - start < np.floor((end - start) * self.share + 1e-9)
        keep = np.ones(len(points), bool)
        keep[inside[lost]] = False
        return points[keep]


@dataclass(frozen=True)
class ObjectNoise(SweepStep):
    """Noise on the points of objects.

    nuScenes-C: normal and uniform 0.02, 0.04, 0.06, 0.08, 0.10 m; impulse 0.1 m on a share of
    1/30, 1/25, 1/20, 1/15, 1/10 of each object's points. The original adds it to all columns.

    Args:
        law: ``"normal"``; ``"uniform"``; ``"impulse"``: plus or minus ``level``.
        level: standard deviation or reach, metres.
        share: of an object's points, rounded down.
        columns: 3, or 4 to add the same number to the intensity, which stays within 0 and 255.
    """

    law: Literal["normal", "uniform", "impulse"]
    level: float
    share: float = 1.0
    columns: int = 3

    def __post_init__(self) -> None:
        if self.law not in ("normal", "uniform", "impulse") or not 0 <= self.share <= 1:
            raise ValueError(
                f'law is "{self.law}", share {self.share:g}; give "normal", "uniform" or '
                '"impulse", and 0 <= share <= 1'
            )

    def is_identity(self) -> bool:
        """See :class:`SweepStep`."""
        return self.level == 0 or self.share == 0

    def corrupt(self, points: NDArray[np.float32], context: SweepContext) -> NDArray[np.float32]:
        """See :class:`SweepStep`."""
        inside, owner, random = *_inside(points, context), context.random()
        if self.share < 1 and len(inside):
            order = np.lexsort((random.random(len(inside)), owner))
            inside, owner = inside[order], owner[order]
            start, end = np.searchsorted(owner, owner), np.searchsorted(owner, owner, "right")
            chosen = np.arange(len(owner)) - start < np.floor((end - start) * self.share + 1e-9)
            inside = inside[chosen]
        size = (len(inside), self.columns)
        if self.law == "normal":
            noise = random.normal(0, self.level, size)
        elif self.law == "uniform":
            noise = random.uniform(-self.level, self.level, size)
        else:
            noise = self.level * (2.0 * random.integers(0, 2, size) - 1)
        noisy = points.copy()
        noisy[inside, : self.columns] += noise.astype(np.float32)
        if self.columns > 3:
            noisy[inside, 3] = noisy[inside, 3].clip(0, 255)
        return noisy


@dataclass(frozen=True)
class SplitObjects(SweepStep):
    """Objects that moved during the revolution: their rear third is half as far along as the rest.

    nuScenes-C (moving object): 0.2, 0.4, 0.6, 0.8, 1.0 m.

    Args:
        distance: along the object's length axis, metres.
    """

    distance: float

    def is_identity(self) -> bool:
        """See :class:`SweepStep`."""
        return self.distance == 0

    def corrupt(self, points: NDArray[np.float32], context: SweepContext) -> NDArray[np.float32]:
        """See :class:`SweepStep`."""
        inside, owner = _inside(points, context)
        boxes = boxes_at(context.frame, context.sweep)
        ego_from_lidar = key_ego_from_lidar(context.frame, context.sweep)
        yaw = boxes.yaw[owner]
        ahead = np.stack([np.cos(yaw), np.sin(yaw), np.zeros_like(yaw)], 1)
        xyz = (
            points[inside, :3].astype(np.float64) @ ego_from_lidar[:3, :3].T + ego_from_lidar[:3, 3]
        )
        along = ((xyz - boxes.center[owner]) * ahead).sum(1) / boxes.size[owner, 0] + 0.5
        step = np.where(along < 1 / 3, self.distance / 2, self.distance)[:, None] * ahead
        moved = points.copy()
        moved[inside, :3] += (step @ ego_from_lidar[:3, :3]).astype(np.float32)
        return moved


def _inside(
    points: NDArray[np.float32], context: SweepContext
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The points that lie in a box, and which."""
    owner = object_of_points(points, context.frame, context.sweep)
    inside = np.flatnonzero(owner >= 0)
    return inside, owner[inside]
