"""Draw the nuScenes map under a frame as one mask per class.

The protocol is MIT BEVFusion's: six classes, drawn as by the devkit's ``get_map_mask``. Shapes are
clipped to the grid; polygon vertices are rounded to cells and filled with their border, line
vertices are truncated to cells and drawn with OpenCV's thickness 2. Differences, on purpose:

* the pose may also scale and mirror (BEV augmentation moves the map's vertices, not the mask);
* any rectangular grid, x first, and any location that has a file;
* a hole does not erase other polygons of its layer;
* self-intersecting polygons are filled even-odd (the devkit skips them or fails).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from ...kernels.grid import BEVGrid
from .classes import MAP_CLASSES
from .map_layers import Lines, Polygons, load_map_layers

Array = NDArray[np.float64]

# How far outside the grid a clipped polygon is closed, in cells: out of sight.
_MARGIN = 4.0


class MapRasterizer:
    """Masks of the map classes of ``classes.MAP_CLASSES`` around any pose.

    A map is read from its JSON file when first needed and kept for the life of the process.

    Args:
        root: the nuScenes folder; maps are ``root/maps/expansion/<location>.json``.
    """

    def __init__(self, root: str | Path) -> None:
        self.root = Path(root)

    @staticmethod
    def is_available(root: str | Path) -> bool:
        """Does the folder hold any map expansion file?"""
        return any((Path(root) / "maps" / "expansion").glob("*.json"))

    def masks(self, location: str, global_from_bev: Array, grid: BEVGrid) -> NDArray[np.bool_]:
        """Draw the map.

        Args:
            location: name of the map.
            global_from_bev: (4, 4), may scale and mirror; tilt is left out, as in the protocol.
            grid: what to cover in the BEV frame.

        Returns:
            (6, X, Y) bool.

        Raises:
            DataError: if there is no readable map of that location.
        """
        layers = load_map_layers(self.root / "maps" / "expansion" / f"{location}.json")
        view = _View(_planar(global_from_bev), grid)
        # Rows are y while drawing, as in the devkit.
        canvases = np.zeros((len(MAP_CLASSES), *grid.shape[::-1]), np.uint8)
        for canvas, name in zip(canvases, MAP_CLASSES):
            layer = layers[name]
            if isinstance(layer, Lines):
                _draw_lines(canvas, layer, view)
            else:
                _draw_polygons(canvas, layer, view)
        return np.ascontiguousarray(canvases.transpose(0, 2, 1)).astype(bool)


def _planar(global_from_bev: Array) -> Array:
    """(2, 3) planar pose: the yaw of the x axis, the uniform scale, the mirror sign, the shift."""
    linear = global_from_bev[:3, :3]
    scale = np.cbrt(abs(np.linalg.det(linear)))
    yaw = np.arctan2(linear[1, 0], linear[0, 0])
    mirror = np.sign(linear[0, 0] * linear[1, 1] - linear[0, 1] * linear[1, 0])
    cos, sin = scale * np.cos(yaw), scale * np.sin(yaw)
    x, y = global_from_bev[:2, 3]
    return np.array([[cos, -sin * mirror, x], [sin, cos * mirror, y]])


@dataclass(frozen=True)
class _View:
    """Where the grid lies on the map."""

    pose: Array  # (2, 3) planar global_from_bev
    grid: BEVGrid

    def visible(self, bounds: Array) -> NDArray[np.intp]:
        """Indices of the shapes whose bounds meet those of the grid in the global frame."""
        corners = np.array([[x, y] for x in self.grid.x_range for y in self.grid.y_range])
        corners = corners @ self.pose[:, :2].T + self.pose[:, 2]
        low, high = corners.min(0), corners.max(0)
        return np.flatnonzero(((bounds[:, :2] <= high) & (bounds[:, 2:] >= low)).all(1))

    @cached_property
    def bev_from_global(self) -> Array:
        """(2, 2), to be applied after the shift."""
        return np.linalg.inv(self.pose[:, :2])

    def to_cells(self, points: Array) -> Array:
        """(..., 2) global metres to fractional cells."""
        cells = (points - self.pose[:, 2]) @ self.bev_from_global.T
        cells[..., 0], cells[..., 1] = self.grid.to_cells(cells[..., 0], cells[..., 1])
        return cells


def _draw_polygons(canvas: NDArray, layer: Polygons, view: _View) -> None:
    for index in view.visible(layer.bounds):
        rings = [view.to_cells(ring) for ring in layer.rings[index]]
        # As the devkit: a hole that leaves the grid is part of the outline, which belongs to the
        # polygon; one inside the grid is cut out with its outline.
        inner = [ring for ring in rings[1:] if _inside(ring, view.grid)]
        crossing = [ring for ring in rings[1:] if not _inside(ring, view.grid)]
        outline = [_clip_ring(ring, view.grid) for ring in (rings[0], *crossing)]
        if not len(outline[0]):
            continue
        target = np.zeros_like(canvas) if inner else canvas
        _fill(target, outline, 1)
        if inner:
            _fill(target, inner, 0)
            canvas |= target


def _fill(canvas: NDArray, rings: list[Array], value: int) -> None:
    """Fill even-odd, outlines included."""
    vertices = [ring.round().astype(np.int32) for ring in rings if len(ring)]
    cv2.fillPoly(canvas, vertices, (value,))


def _inside(ring: Array, grid: BEVGrid) -> bool:
    return bool((ring >= 0).all() and (ring <= grid.shape).all())


def _clip_ring(ring: Array, grid: BEVGrid) -> Array:
    """Clip a closed ring of cells to the grid (Sutherland and Hodgman)."""
    if _inside(ring, grid):
        return ring
    for axis in (0, 1):
        ring = _clip_side(ring, axis, 0.0, 1.0)
        ring = _clip_side(ring, axis, float(grid.shape[axis]), -1.0)
    return ring


def _clip_side(ring: Array, axis: int, limit: float, sign: float) -> Array:
    """Keep the part of a ring with ``sign * (coordinate - limit) >= 0``.

    Where the ring leaves and comes back, it is joined ``_MARGIN`` cells outside rather than along
    the limit: fillPoly also draws outlines, and a line along the limit may belong to no polygon.
    """
    ahead = sign * (ring[:, axis] - limit)
    kept = ahead >= 0
    if kept.all() or not kept.any():
        return ring[kept]
    crossing = kept != np.roll(kept, -1)
    step = np.roll(ring, -1, 0) - ring
    span = ahead - np.roll(ahead, -1)
    share = np.divide(ahead, span, out=np.zeros_like(ahead), where=crossing)
    border = ring + share[:, None] * step
    border[:, axis] = limit
    outside = border.copy()
    outside[:, axis] = limit - sign * _MARGIN
    leaving = kept[:, None]
    candidates = [ring, np.where(leaving, border, outside), np.where(leaving, outside, border)]
    return np.stack(candidates, 1)[np.stack([kept, crossing, crossing], 1)]


def _draw_lines(canvas: NDArray, layer: Lines, view: _View) -> None:
    cells = view.to_cells(layer.segments[view.visible(layer.bounds)])
    cells = _clip_segments(cells, view.grid).astype(np.int32)  # truncated, as in the devkit
    if len(cells):
        cv2.polylines(canvas, list(cells), False, (1,), 2)


def _clip_segments(segments: Array, grid: BEVGrid) -> Array:
    """(n, 2, 2) segments in cells -> the parts of them on the grid (Liang and Barsky)."""
    start, end = segments[:, 0], segments[:, 1]
    step = end - start
    step = np.where(step == 0, 1e-200, step)  # a direction for segments along an axis
    low, high = -start / step, (np.array(grid.shape) - start) / step
    first = np.minimum(low, high).max(1).clip(min=0)[:, None]
    last = np.maximum(low, high).min(1).clip(max=1)[:, None]
    clipped = np.stack([start + first * step, np.where(last == 1, end, start + last * step)], 1)
    return clipped[(first < last)[:, 0]]
