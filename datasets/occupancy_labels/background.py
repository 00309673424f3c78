"""The class of what stands still: from labelled points nearby, otherwise from its height.

Only key sweeps have lidarseg labels, one in ten; the others take theirs from the labelled points
of all key sweeps around them. Where there are none, geometry says whether a point is ground, and no
more: everything else is ``manmade``.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ..nuscenes.classes import OCCUPANCY_CLASSES

UNKNOWN = 254  # a point whose class is still to be found
GROUND = len(OCCUPANCY_CLASSES)  # ground, of a kind that the map or a default decides
MANMADE = OCCUPANCY_CLASSES.index("manmade")

_CELL = 0.2  # metres
_NEARBY = 2.0  # metres from a label within which an unlabelled point takes it
_GROUND_CELL = 1.0  # metres
_LOW_SHARE = 0.05  # of a cell's points lie below its floor: outliers
_STEP, _SLOPE = 0.3, 0.08  # the ground is this near the road's height: metres, and per metre away
_UNEVEN = 0.2  # metres by which neighbouring floors may differ
GROUND_BAND = 0.2  # metres above the floor that still are ground
_OFFSET = 1 << 20  # cells; makes their numbers positive


class NearbyLabels:
    """Classes of points from labelled points: the most frequent one in a point's own small cell,
    or, where that has none, in the nearest one that has.

    Args:
        points: (P, 3) labelled points.
        label: (P,) their classes.
    """

    def __init__(self, points: NDArray, label: NDArray[np.uint8]) -> None:
        from scipy.spatial import KDTree

        self._keys, self._label = _majority(_keys(points), label)
        self._tree = KDTree(_middles(self._keys))

    def of(self, points: NDArray) -> NDArray[np.uint8]:
        """(P,) classes; UNKNOWN farther than 2 m from every label."""
        found = np.full(len(points), UNKNOWN, np.uint8)
        if not len(self._keys) or not len(points):
            return found
        wanted = _keys(points)
        at = np.minimum(np.searchsorted(self._keys, wanted), len(self._keys) - 1)
        same = self._keys[at] == wanted
        found[same] = self._label[at[same]]
        rest = np.flatnonzero(~same)
        distance, nearest = self._tree.query(points[rest], distance_upper_bound=_NEARBY)
        near = np.isfinite(distance)
        found[rest[near]] = self._label[np.asarray(nearest)[near]]
        return found


def _keys(points: NDArray) -> NDArray[np.int64]:
    """A number for each point's cubic cell."""
    cell = np.floor(np.asarray(points, np.float64) / _CELL).astype(np.int64) + _OFFSET
    return (cell[:, 0] << 42) | (cell[:, 1] << 21) | cell[:, 2]


def _middles(keys: NDArray[np.int64]) -> NDArray[np.float64]:
    """(C, 3) the middles of cells by their numbers."""
    mask = (1 << 21) - 1
    cell = np.stack([keys >> 42, (keys >> 21) & mask, keys & mask], -1) - _OFFSET
    return (cell + 0.5) * _CELL


def _majority(
    keys: NDArray[np.int64], label: NDArray[np.uint8]
) -> tuple[NDArray[np.int64], NDArray[np.uint8]]:
    """Distinct keys in order, each with its most frequent label; of equals the lower one."""
    cells, index = np.unique(keys, return_inverse=True)
    width = len(OCCUPANCY_CLASSES)
    counts = np.bincount(index * width + label, minlength=len(cells) * width)
    return cells, counts.reshape(-1, width).argmax(1).astype(np.uint8)


class GroundHeight:
    """The height of the ground around a drive, from the lowest points of each cell of 1 m.

    A cell's floor is ground if it lies near the height at which the vehicle passed closest, and
    not above the floors beside it: the foot of a wall whose ground nobody saw is none.

    Args:
        points: (P, 3) of all that stands still.
        road: (F, 3) places of the vehicle's origin, which is on the ground.
    """

    def __init__(self, points: NDArray, road: NDArray[np.float64]) -> None:
        xy = np.floor(points[:, :2] / _GROUND_CELL).astype(np.int64)
        self._low = xy.min(0) if len(xy) else np.zeros(2, np.int64)
        shape = xy.max(0) - self._low + 1 if len(xy) else np.ones(2, np.int64)
        flat = (xy - self._low) @ np.array([shape[1], 1])
        floor = np.full(shape.prod(), np.nan)
        order = np.lexsort((points[:, 2], flat))
        cells, first, count = np.unique(flat[order], return_index=True, return_counts=True)
        floor[cells] = points[order[first + (_LOW_SHARE * count).astype(np.int64)], 2]
        self.height = self._trusted(floor.reshape(shape), road)

    def _trusted(self, floor: NDArray[np.float64], road: NDArray) -> NDArray[np.float64]:
        from scipy.ndimage import minimum_filter
        from scipy.spatial import KDTree

        corner = np.stack(np.meshgrid(*map(np.arange, floor.shape), indexing="ij"), -1)
        middle = (corner + self._low + 0.5) * _GROUND_CELL
        distance, nearest = KDTree(road[:, :2]).query(middle)
        beside = minimum_filter(np.where(np.isnan(floor), np.inf, floor), 5)
        height = np.minimum(floor, beside + _UNEVEN)
        return np.where(abs(height - road[nearest, 2]) < _STEP + _SLOPE * distance, height, np.nan)

    def above(self, points: NDArray) -> NDArray[np.float64]:
        """(P,) metres above the ground; NaN where its height is not known."""
        cell = np.floor(points[:, :2] / _GROUND_CELL).astype(np.int64) - self._low
        inside = ((cell >= 0) & (cell < self.height.shape)).all(1)
        cell[~inside] = 0
        return np.where(inside, points[:, 2] - self.height[tuple(cell.T)], np.nan)

    def classes(self, points: NDArray) -> NDArray[np.uint8]:
        """(P,) GROUND for points on the ground, MANMADE for all others."""
        return np.where(self.above(points) < GROUND_BAND, GROUND, MANMADE).astype(np.uint8)
