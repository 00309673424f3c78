"""The bird's-eye view: points, boxes and map from above, forward (x) up the page."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import ArrayLike, NDArray

from ...datasets.boxes import Boxes3D, Detections
from ...datasets.geometry import apply
from ...datasets.nuscenes.classes import MAP_CLASSES
from ...kernels.grid import BEVGrid
from .canvas import Canvas
from .scene import VEHICLE, as_detections, confident
from .style import DARK, MAP_OPACITY, Theme, ramp
from .trails import Trail

# Areas first, what lies on them after.
MAP_ORDER = ("drivable_area", "carpark_area", "walkway", "ped_crossing", "stop_line", "divider")


@dataclass(frozen=True)
class BEVView:
    """Where the ground lies in the picture.

    Args:
        grid: the region that is shown; its cells do not matter.
        size_px: of the picture's longer side.
    """

    grid: BEVGrid
    size_px: int

    @property
    def pixels_per_metre(self) -> float:
        """The scale."""
        (x0, x1), (y0, y1) = self.grid.x_range, self.grid.y_range
        return self.size_px / max(x1 - x0, y1 - y0)

    @property
    def shape(self) -> tuple[int, int]:
        """Width and height of the picture."""
        (x0, x1), (y0, y1) = self.grid.x_range, self.grid.y_range
        return round((y1 - y0) * self.pixels_per_metre), round((x1 - x0) * self.pixels_per_metre)

    def pixels(self, points: ArrayLike) -> NDArray[np.float64]:
        """(..., 2 or more) x, y in metres -> (..., 2) u, v of the canvas."""
        points = np.asarray(points, float)
        ahead, left = self.grid.x_range[1], self.grid.y_range[1]
        offset = np.stack([left - points[..., 1], ahead - points[..., 0]], -1)
        return offset * self.pixels_per_metre - 0.5


def draw_bev(
    points: NDArray | None = None,
    boxes: Detections | Boxes3D | None = None,
    truth: Boxes3D | None = None,
    map_layers: NDArray | None = None,
    *,
    trails: Sequence[Trail] = (),
    grid: BEVGrid,
    map_grid: BEVGrid | None = None,
    size_px: int = 900,
    colour_by: str = "height",
    min_score: float = 0.1,
    bev_from_ego: NDArray | None = None,
    title: str | None = None,
    theme: Theme = DARK,
) -> NDArray[np.uint8]:
    """Draw one moment from above; whatever is None is left out.

    Args:
        points: (P, 3 or more) x, y, z, intensity 0..255 in the BEV frame.
        boxes: predictions, filled in the colour of their class, stronger with their score; or
            annotated boxes, to draw them the same way.
        truth: annotated boxes, drawn as dashed outlines.
        map_layers: (K, X, Y) probabilities or masks in the order of ``MAP_CLASSES``.
        trails: the ways of tracked objects.
        grid: the region to show.
        map_grid: where ``map_layers`` lie; None: on ``grid``.
        size_px: longer side of the picture.
        colour_by: what the colour of a point means, ``"height"`` or ``"intensity"``.
        min_score: boxes with a lower score are left out.
        bev_from_ego: (4, 4), where the vehicle stands; None: at the origin.
        title: written in the corner.
        theme: colours.

    Returns:
        (H, W, 3) uint8 RGB; H : W is the region's length : width.
    """
    view = BEVView(grid, size_px)
    if map_layers is None:
        canvas = Canvas.blank(*view.shape, theme.surface)
    else:
        canvas = Canvas(_map_picture(view, map_layers, map_grid or grid, theme))
    _draw_rings(canvas, view, theme)
    if points is not None and len(points):
        _draw_points(canvas, view, points, colour_by, theme)
    vehicle = np.eye(4) if bev_from_ego is None else bev_from_ego
    _draw_vehicle(canvas, view, vehicle, theme)
    _draw_trails(canvas, view, trails)
    _draw_boxes(canvas, view, confident(as_detections(boxes), min_score), theme)
    if truth is not None:
        _draw_truth(canvas, view, truth, theme)
    if title:
        where = (10, 9)
        canvas.text(where, title, theme.text, 14, bold=True, pill=theme.background)
    return canvas.finish()


def map_picture(
    layers: NDArray, grid: BEVGrid, size_px: int, theme: Theme = DARK
) -> NDArray[np.uint8]:
    """(H, W, 3) the map alone, forward up.

    Args:
        layers: (K, X, Y) probabilities or masks in the order of ``MAP_CLASSES``.
        grid: where they lie; all of it is shown.
        size_px: longer side of the picture.
        theme: colours.
    """
    return _map_picture(BEVView(grid, size_px), layers, grid, theme)


def _map_picture(view: BEVView, layers: NDArray, grid: BEVGrid, theme: Theme) -> NDArray[np.uint8]:
    """The map alone, one soft area over the other."""
    if layers.shape[1:] != grid.shape:
        raise ValueError(
            f"the map layers are {tuple(layers.shape[1:])} cells, the map grid {grid.shape}; "
            "give the grid that they were made on"
        )
    # Where on a layer, turned so that x is up and y left, each pixel of the picture looks.
    step = 1 / (view.pixels_per_metre * grid.cell_size)
    u0 = (grid.y_range[1] - view.grid.y_range[1]) / grid.cell_size + step / 2 - 0.5
    v0 = (grid.x_range[1] - view.grid.x_range[1]) / grid.cell_size + step / 2 - 0.5
    layer_from_picture = np.array([[step, 0, u0], [0, step, v0]])
    how = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
    width, height = view.shape
    picture = np.broadcast_to(np.asarray(theme.surface, np.float32), (height, width, 3)).copy()
    for name in MAP_ORDER:
        k = MAP_CLASSES.index(name)
        if k < len(layers):
            layer = np.ascontiguousarray(layers[k][::-1, ::-1], np.float32)
            seen = cv2.warpAffine(layer, layer_from_picture, view.shape, flags=how)
            # Soft where the model is unsure, with an edge at one half.
            opacity = np.clip((seen - 0.25) / 0.5, 0, 1)[..., None] * np.float32(MAP_OPACITY[name])
            picture += (np.asarray(theme.maps[k], np.float32) - picture) * opacity
    return np.round(picture).astype(np.uint8)


def _draw_rings(canvas: Canvas, view: BEVView, theme: Theme, step: int = 10) -> None:
    (x0, x1), (y0, y1) = view.grid.x_range, view.grid.y_range
    farthest = np.hypot(max(abs(x0), abs(x1)), max(abs(y0), abs(y1)))
    centre = view.pixels((0.0, 0.0))
    diagonal = np.array([1, -1]) / np.sqrt(2)  # ahead to the right
    for radius in range(step, int(farthest) + 1, step):
        canvas.circle(centre, radius * view.pixels_per_metre, theme.muted, 1, 0.38)
        where = diagonal * radius
        if view.grid.contains(where[0] + 3, where[1] - 3):
            canvas.text(
                view.pixels(where), f"{radius} m", theme.muted, 10, anchor=(0.5, 0.5),
                pill=theme.surface, pill_opacity=0.7,
            )  # fmt: skip


def _draw_points(
    canvas: Canvas, view: BEVView, points: NDArray, colour_by: str, theme: Theme
) -> None:
    if colour_by not in ("height", "intensity"):
        raise ValueError(f"colour_by is {colour_by!r}; use 'height' or 'intensity'")
    points = points[view.grid.contains(points[:, 0], points[:, 1])]
    if colour_by == "height":
        value = (points[:, 2] + 0.5) / 3.5  # the road to the roof of a truck
    else:
        value = np.sqrt(np.clip(points[:, 3], 0, None) / 100)  # most returns are weak
    order = np.argsort(value, kind="stable")
    colours = ramp(value[order], theme.points)
    size = 3 if canvas.scale * view.pixels_per_metre > 14 else 2
    canvas.dots(view.pixels(points[order]), colours, size)


def _draw_vehicle(canvas: Canvas, view: BEVView, bev_from_ego: NDArray, theme: Theme) -> None:
    rear, front, half = VEHICLE

    def shape(outline: list[tuple[float, float]]) -> NDArray:
        flat = np.array(outline + [(x, -y) for x, y in reversed(outline)])
        return view.pixels(apply(bev_from_ego, np.pad(flat, ((0, 0), (0, 1)))))

    body = [
        (rear, 0.6),
        (rear + 0.25, half),
        (front - 0.7, half),
        (front - 0.15, 0.65),
        (front, 0.3),
    ]
    window = [(front - 1.75, 0.62), (front - 1.15, 0.72)]
    rear_window = [(rear + 0.45, 0.6), (rear + 0.8, 0.66)]
    canvas.polygon(shape(body), theme.ego)
    canvas.polygon(shape(window), theme.background, 0.75)
    canvas.polygon(shape(rear_window), theme.background, 0.75)


def _draw_boxes(canvas: Canvas, view: BEVView, boxes: Detections, theme: Theme) -> None:
    floors = view.pixels(boxes.boxes.corners()[:, :4])
    for i, floor in enumerate(floors):
        colour, score = theme.of_class(int(boxes.boxes.label[i])), float(boxes.score[i])
        strength = 0.35 + 0.65 * min(max(score, 0.0), 1.0)
        canvas.polygon(floor, colour, 0.45 * strength)
        canvas.lines(_outline(floor), colour, 1.5, strength)
        canvas.lines(_heading(floor), colour, 1.5, strength)
        _draw_velocity(canvas, view, boxes.boxes[np.array([i])], colour, strength)


def _draw_trails(canvas: Canvas, view: BEVView, trails: Sequence[Trail]) -> None:
    for trail in trails:
        for piece, opacity in zip(view.pixels(trail.pieces), trail.opacities, strict=True):
            canvas.lines(piece[None], trail.colour, 2.2, float(opacity))
        for place in view.pixels(trail.places):
            canvas.circle(place, 1.8, trail.colour, opacity=0.8)


def _draw_truth(canvas: Canvas, view: BEVView, truth: Boxes3D, theme: Theme) -> None:
    for floor in view.pixels(truth.corners()[:, :4]):
        segments = np.concatenate([_outline(floor), _heading(floor)])
        canvas.lines(segments, theme.truth, 1.0, 0.95, dash=3)


def _draw_velocity(canvas: Canvas, view: BEVView, box: Boxes3D, colour, opacity: float) -> None:
    """An arrow to where the box will be in one second; standing things have none."""
    velocity = box.velocity[0]
    speed = np.linalg.norm(velocity)
    if not speed > 0.5:  # NaN too
        return
    start, end = view.pixels(box.center[0, :2]), view.pixels(box.center[0, :2] + velocity)
    along = (end - start) / np.linalg.norm(end - start)
    across, length = np.array([-along[1], along[0]]), min(5.0, 1.5 + speed)
    canvas.lines([[start, end - along * length]], colour, 1.3, opacity)
    neck = end - along * length * 1.4
    canvas.polygon(
        [end, neck + across * length * 0.6, neck - across * length * 0.6], colour, opacity
    )


def _outline(floor: NDArray) -> NDArray[np.float64]:
    return np.stack([floor, np.roll(floor, -1, 0)], 1)


def _heading(floor: NDArray) -> NDArray[np.float64]:
    """From the middle of a box through its front edge: corners 0 and 3 are the front."""
    middle, front = floor.mean(0), (floor[0] + floor[3]) / 2
    return np.stack([middle + (front - middle) * 0.35, front])[None]
