"""The ground of a scene as an image: which surface lies at every 10 cm."""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum

import cv2
import numpy as np
from numpy.typing import NDArray

from .streets import Polygon, Street


class Surface(IntEnum):
    """What the ground is made of."""

    GRASS = 0
    ASPHALT = 1
    WALKWAY = 2
    CAR_PARK = 3
    WHITE_PAINT = 4
    YELLOW_PAINT = 5


# lidarseg's class of each surface, by name; car parks are driven on like roads.
SURFACE_CATEGORY = {
    Surface.GRASS: "flat.terrain",
    Surface.ASPHALT: "flat.driveable_surface",
    Surface.WALKWAY: "flat.sidewalk",
    Surface.CAR_PARK: "flat.driveable_surface",
    Surface.WHITE_PAINT: "flat.driveable_surface",
    Surface.YELLOW_PAINT: "flat.driveable_surface",
}
# Paint is retroreflective, but worn: it hardly stands out in a single LiDAR return.
REFLECTIVITY = np.array([0.25, 0.12, 0.22, 0.14, 0.2, 0.19])
CELL = 0.1  # metres


@dataclass(frozen=True)
class Ground:
    """Surfaces on a square around a point."""

    corner: NDArray[np.float64]  # (2,) lowest x and y, global metres
    surface: NDArray[np.uint8]  # (X, Y) of Surface

    def at(self, xy: NDArray) -> NDArray[np.uint8]:
        """(..., 2) global metres -> surface; grass beyond the edges."""
        cell = np.floor((xy - self.corner) / CELL).astype(np.int64)
        inside = ((cell >= 0) & (cell < self.surface.shape)).all(-1)
        i, j = np.moveaxis(np.where(inside[..., None], cell, 0), -1, 0)
        return np.where(inside, self.surface[i, j], Surface.GRASS)


class _Painter:
    def __init__(self, middle: NDArray, extent: float) -> None:
        cells = round(extent / CELL)
        self.corner = middle - extent / 2
        self.image = np.zeros((cells, cells), np.uint8)

    def _pixels(self, polygon: Polygon) -> NDArray:
        # cv2 counts (column, row) = (y cell, x cell), with 8 fractional bits.
        cells = (polygon - self.corner) / CELL - 0.5
        return np.round(cells[:, ::-1] * 256).astype(np.int32)

    def fill(self, polygon: Polygon, surface: Surface) -> None:
        cv2.fillPoly(self.image, [self._pixels(polygon)], (int(surface),), shift=8)

    def line(self, points: Polygon, surface: Surface, width: float = 0.15) -> None:
        thickness = max(round(width / CELL), 1)
        cv2.polylines(
            self.image, [self._pixels(points)], False, (int(surface),), thickness, shift=8
        )


def paint_ground(street: Street, middle: NDArray, extent: float) -> Ground:
    """Draw a street's surfaces and markings on the square of edge ``extent`` around ``middle``."""
    painter = _Painter(middle, extent)
    for polygon in street.park_areas:
        painter.fill(polygon, Surface.CAR_PARK)
    for polygon in street.walkways:
        painter.fill(polygon, Surface.WALKWAY)
    for polygon in street.roads:
        painter.fill(polygon, Surface.ASPHALT)
    for line in street.bay_lines:
        painter.line(line, Surface.WHITE_PAINT)
    for line in street.road_dividers:
        painter.line(line, Surface.YELLOW_PAINT, 0.2)
    for line in street.lane_dividers:
        for dash in dashes(line):
            painter.line(dash, Surface.WHITE_PAINT)
    for polygon in street.crossings:
        for stripe in zebra(polygon):
            painter.fill(stripe, Surface.WHITE_PAINT)
    for polygon in street.stop_lines:
        painter.fill(_front_strip(polygon), Surface.WHITE_PAINT)
    return Ground(painter.corner, painter.image)


def dashes(line: Polygon, paint: float = 3.0, gap: float = 4.0) -> list[Polygon]:
    """A polyline cut into painted pieces."""
    steps = np.linalg.norm(np.diff(line, axis=0), axis=1)
    along = np.concatenate([[0], np.cumsum(steps)])
    starts = np.arange(0, along[-1] - paint, paint + gap)
    return [
        np.stack([np.interp([s, s + paint], along, line[:, axis]) for axis in (0, 1)], 1)
        for s in starts
    ]


def _rectangle(polygon: Polygon) -> tuple[NDArray, NDArray, NDArray]:
    """Corner, and the two edges from it, of a strip's outline (bent strips taken as straight)."""
    half = len(polygon) // 2
    return polygon[0], polygon[half - 1] - polygon[0], polygon[-1] - polygon[0]


def zebra(polygon: Polygon, width: float = 0.5) -> list[Polygon]:
    """Stripes of a crossing, parallel to the traffic: across its longer edge."""
    corner, along, across = _rectangle(polygon)
    if np.linalg.norm(along) > np.linalg.norm(across):
        along, across = across, along
    count = int(np.linalg.norm(across) / (2 * width))
    if count < 1:
        return []
    step = across / count
    starts = corner + step * np.arange(count)[:, None]
    return [np.stack([p, p + along, p + along + step / 2, p + step / 2]) for p in starts]


def _front_strip(polygon: Polygon, width: float = 0.4) -> Polygon:
    """The painted line in the middle of a stop-line area."""
    corner, along, across = _rectangle(polygon)
    if np.linalg.norm(along) > np.linalg.norm(across):
        along, across = across, along
    unit = along / max(float(np.linalg.norm(along)), 1e-9)
    first = corner + along / 2 - unit * width / 2
    return np.stack([first, first + unit * width, first + unit * width + across, first + across])
