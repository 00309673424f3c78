"""Points that do not come back: by chance, by ring, by direction, in holes, of dark objects."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numba import njit
from numpy.typing import NDArray

from ..nuscenes.classes import DETECTION_CLASSES
from .regions import boxes_at, object_of_points
from .sensors import SweepContext, SweepStep

Points = NDArray[np.float32]


@dataclass(frozen=True)
class DropPoints(SweepStep):
    """Lose points at random; the others stay in their order.

    Args:
        fraction: share of the points of every sweep that is lost.
        stride: of what is left, keep every stride-th point in file order.
    """

    fraction: float = 0.0
    stride: int = 1

    def __post_init__(self) -> None:
        if not 0 <= self.fraction <= 1 or self.stride < 1:
            raise ValueError(
                f"fraction is {self.fraction:g}, stride {self.stride}; give 0 <= fraction <= 1 and "
                "a stride of at least 1"
            )

    def is_identity(self) -> bool:
        """See :class:`SweepStep`."""
        return self.fraction == 0 and self.stride == 1

    def corrupt(self, points: Points, context: SweepContext) -> Points:
        """See :class:`SweepStep`."""
        if self.fraction:
            points = points[random_subset(len(points), 1 - self.fraction, context.random())]
        return points[:: self.stride]


def random_subset(count: int, share: float, random: np.random.Generator) -> NDArray[np.int64]:
    """round(count * share) of the numbers below count, ascending."""
    chosen = round(count * share)
    if chosen > count // 2:  # drawing the fewer ones is quicker
        left_out = random.choice(count, count - chosen, replace=False, shuffle=False)
        keep = np.ones(count, bool)
        keep[left_out] = False
        return np.flatnonzero(keep)
    return np.sort(random.choice(count, chosen, replace=False, shuffle=False))


@dataclass(frozen=True)
class KeepRings(SweepStep):
    """Keep the returns of some beams only, the same in every sweep.

    Args:
        rings: numbers of the rings that stay.
    """

    rings: tuple[int, ...]

    def corrupt(self, points: Points, context: SweepContext) -> Points:
        """See :class:`SweepStep`."""
        return points[np.isin(points[:, 4], np.array(self.rings, np.float32))]


@dataclass(frozen=True)
class LoseRings(SweepStep):
    """Lose the returns of beams drawn at random; all sweeps of a frame lose the same ones.

    Args:
        count: rings to lose; drawn once more each with ``replacement``, so that some count twice.
        first: lowest ring that may be lost.
        last: highest ring that may be lost.
        replacement: draw the same ring more than once.
    """

    count: int
    first: int = 0
    last: int = 31
    replacement: bool = False

    def __post_init__(self) -> None:
        pool = self.last - self.first + 1
        if self.count < 0 or (self.count > pool and not self.replacement):
            raise ValueError(
                f"count is {self.count}, but rings {self.first} to {self.last} are {pool}; give at "
                "most as many"
            )

    def is_identity(self) -> bool:
        """See :class:`SweepStep`."""
        return self.count == 0

    def corrupt(self, points: Points, context: SweepContext) -> Points:
        """See :class:`SweepStep`."""
        pool = np.arange(self.first, self.last + 1, dtype=np.float32)
        # All draws of a severity begin with those of the milder ones.
        random = context.frame_random()
        if self.replacement:
            lost = pool[(random.random(self.count) * len(pool)).astype(int)]
        else:
            lost = random.permutation(pool)[: self.count]
        return points[~np.isin(points[:, 4], lost)]


@dataclass(frozen=True)
class CropAzimuth(SweepStep):
    """Lose what lies outside a sector around the direction of driving.

    Args:
        half_angle: degrees to either side of the LiDAR's +y, which looks ahead in nuScenes.
    """

    half_angle: float

    def is_identity(self) -> bool:
        """See :class:`SweepStep`."""
        return self.half_angle >= 180

    def corrupt(self, points: Points, context: SweepContext) -> Points:
        """See :class:`SweepStep`."""
        return points[_in_sector(points, np.cos(np.deg2rad(self.half_angle)))]


@njit(cache=True, nogil=True)
def _in_sector(points, cosine):
    inside = np.empty(len(points), np.bool_)
    for p in range(len(points)):
        x, y = np.float64(points[p, 0]), np.float64(points[p, 1])
        inside[p] = y >= cosine * np.sqrt(x * x + y * y)
    return inside


@dataclass(frozen=True)
class Cutout(SweepStep):
    """Holes: the points nearest to points drawn at random are lost.

    Args:
        holes: number of holes in a sweep.
        fraction: share of the points that each hole takes of what is left.
        with_intensity: distance is over intensity and ring too, as nuScenes-C has it.
    """

    holes: int
    fraction: float = 0.02
    with_intensity: bool = False

    def is_identity(self) -> bool:
        """See :class:`SweepStep`."""
        return self.holes == 0 or self.fraction == 0

    def corrupt(self, points: Points, context: SweepContext) -> Points:
        """See :class:`SweepStep`."""
        random, columns = context.random(), 5 if self.with_intensity else 3
        for place in random.random(self.holes):
            lost = round(len(points) * self.fraction)
            if lost == 0:
                break
            distance = _squared_distances(points, int(place * len(points)), columns)
            keep = np.ones(len(points), bool)
            keep[np.argpartition(distance, lost - 1)[:lost]] = False
            points = points[keep]
        return points


@njit(cache=True, nogil=True)
def _squared_distances(points, center, columns):
    distance = np.zeros(len(points), np.float32)
    for p in range(len(points)):
        for column in range(columns):
            step = points[p, column] - points[center, column]
            distance[p] += step * step
    return distance


VEHICLES = ("car", "truck", "construction_vehicle", "bus", "trailer", "motorcycle", "bicycle")


@dataclass(frozen=True)
class LoseEchoes(SweepStep):
    """Dark vehicles return few echoes: lose a share of the points in annotated boxes.

    A frame without annotations stays as it is.

    Args:
        fraction: share of the points of each class that is lost.
        classes: names of detection classes.
        smallest: classes with this many points or fewer in the sweep keep them.
    """

    fraction: float
    classes: tuple[str, ...] = VEHICLES
    smallest: int = 10

    def __post_init__(self) -> None:
        unknown = [name for name in self.classes if name not in DETECTION_CLASSES]
        if unknown or not 0 <= self.fraction <= 1:
            raise ValueError(
                f"classes is {self.classes}, fraction {self.fraction:g}; give classes among "
                f"{', '.join(DETECTION_CLASSES)} and 0 <= fraction <= 1"
            )

    def is_identity(self) -> bool:
        """See :class:`SweepStep`."""
        return self.fraction == 0

    def corrupt(self, points: Points, context: SweepContext) -> Points:
        """See :class:`SweepStep`."""
        boxes = boxes_at(context.frame, context.sweep)
        owner = object_of_points(points, context.frame, context.sweep, boxes)
        label = np.where(owner >= 0, boxes.label[owner], -1) if len(boxes) else owner
        keep, random = np.ones(len(points), bool), context.random()
        for name in self.classes:
            members = np.flatnonzero(label == DETECTION_CLASSES.index(name))
            if len(members) > self.smallest:
                keep[members[random_subset(len(members), self.fraction, random)]] = False
        return points[keep]
