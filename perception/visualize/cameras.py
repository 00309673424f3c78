"""Camera images with boxes and points in them, any number of cameras in one picture."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from ...datasets.boxes import Boxes3D, Detections
from ...datasets.camera_models import CameraModel, Pinhole
from ...datasets.frame import Camera, Frame
from ...datasets.geometry import apply
from ...datasets.nuscenes.classes import DETECTION_CLASSES
from .canvas import Canvas, text_size
from .scene import as_detections, camera_from_bev, confident, key_points
from .style import DARK, Colour, Theme, ramp, title_of
from .trails import Trail

ORDER = tuple(
    f"CAM_{place}"
    for place in ("FRONT_LEFT", "FRONT", "FRONT_RIGHT", "BACK_LEFT", "BACK", "BACK_RIGHT")
)
EDGES = np.array(
    [(0, 1), (1, 2), (2, 3), (3, 0), (4, 5), (5, 6), (6, 7), (7, 4), (0, 4), (1, 5), (2, 6), (3, 7)]
)
FRONT = np.array([(0, 7), (3, 4)])  # a cross on the front face says where a box is heading
NEAR = 0.1  # metres; what is nearer to a camera is cut off
PIECES = 8  # of an edge, so that it bends as the lens does; a pinhole keeps lines straight
DEPTH_COLOURS = ((255, 238, 140), (255, 160, 80), (214, 80, 120), (110, 90, 200), (60, 110, 190))


def draw_cameras(
    frame: Frame,
    boxes: Detections | Boxes3D | None = None,
    truth: Boxes3D | None = None,
    *,
    trails: Sequence[Trail] = (),
    draw_points: bool = False,
    tile_width: int = 480,
    min_score: float = 0.1,
    labels: bool = True,
    class_names: tuple[str, ...] = DETECTION_CLASSES,
    theme: Theme = DARK,
) -> NDArray[np.uint8]:
    """All images of a frame in a grid, nuScenes' six in its order: front row, back row.

    Args:
        frame: the moment; every camera is drawn with its own pose at its own time.
        boxes: predictions in the BEV frame (``frame.bev_from_ego``), in their class's colour; or
            annotated boxes, to draw them the same way.
        truth: annotated boxes in the BEV frame, drawn as dashed outlines.
        trails: the ways of tracked objects on the ground.
        draw_points: overlay the key sweep, coloured by depth.
        tile_width: of one image, pixels.
        min_score: boxes with a lower score are left out.
        labels: write class and score on the boxes.
        class_names: what the labels are called.
        theme: colours.

    Returns:
        (H, W, 3) uint8 RGB; a note on a plain tile if the frame has no camera.
    """
    cameras = in_order(frame.cameras)
    if not cameras:
        return _no_camera(tile_width, theme)
    points = key_points(frame) if draw_points else None
    tiles = [
        draw_camera(
            frame, camera, boxes, truth, trails=trails, points=points, width=tile_width,
            min_score=min_score,
            labels=labels, class_names=class_names, theme=theme,
        )
        for camera in cameras
    ]  # fmt: skip
    return tile(tiles, columns_for(len(tiles)), theme.background)


def draw_camera(
    frame: Frame,
    camera: Camera,
    boxes: Detections | Boxes3D | None = None,
    truth: Boxes3D | None = None,
    *,
    trails: Sequence[Trail] = (),
    points: NDArray | None = None,
    width: int = 480,
    min_score: float = 0.1,
    labels: bool = True,
    class_names: tuple[str, ...] = DETECTION_CLASSES,
    theme: Theme = DARK,
) -> NDArray[np.uint8]:
    """One image; see :func:`draw_cameras`. ``points`` are (P, 3 or more) in the BEV frame."""
    model = camera.model
    shrink = width / model.width
    height = max(1, round(model.height * shrink))
    image = camera.load(_reduction(model.width / (2 * width)))
    canvas = Canvas(image, (width, height))
    projection = _Projection(model, camera_from_bev(frame, camera), shrink)
    if points is not None and len(points):
        _draw_points(canvas, projection, points)
    for trail in trails:
        for piece, opacity in zip(trail.pieces, trail.opacities, strict=True):
            segments = projection.segments(piece[None])
            canvas.lines(segments, trail.colour, 2.5, float(opacity))
    drawn = confident(as_detections(boxes), min_score)
    _draw_boxes(canvas, projection, drawn, class_names if labels else None)
    if truth is not None:
        for corners in truth.corners():
            segments = projection.segments(corners[EDGES])
            canvas.lines(segments, theme.background, 2.4, 0.4, dash=4)
            canvas.lines(segments, DARK.truth, 1.1, 0.95, dash=4)
    name = title_of(camera.name)
    canvas.text((8, 8), name, DARK.text, 11, bold=True, pill=DARK.background, pill_opacity=0.7)
    return canvas.finish()


def in_order(cameras: tuple[Camera, ...]) -> list[Camera]:
    """nuScenes' cameras in the order of the picture, then all others as they come."""
    known = [camera for name in ORDER for camera in cameras if camera.name == name]
    return known + [camera for camera in cameras if camera.name not in ORDER]


def columns_for(count: int) -> int:
    """Columns of a grid of ``count`` images: three for six, as near to square as may be else."""
    return count if count <= 3 else math.ceil(math.sqrt(count))


def tile(
    images: list[NDArray], columns: int, background: Colour, gap: int = 4
) -> NDArray[np.uint8]:
    """Images in rows of ``columns``; each row as high as its highest image."""
    rows = [images[i : i + columns] for i in range(0, len(images), columns)]
    width = max(sum(image.shape[1] for image in row) + gap * (len(row) - 1) for row in rows)
    heights = [max(image.shape[0] for image in row) for row in rows]
    page = np.empty((sum(heights) + gap * (len(rows) - 1), width, 3), np.uint8)
    page[:] = background
    top = 0
    for row, height in zip(rows, heights, strict=True):
        left = 0
        for image in row:
            page[top : top + image.shape[0], left : left + image.shape[1]] = image
            left += image.shape[1] + gap
        top += height + gap
    return page


def clip_near(segments: NDArray[np.float64], near: float = NEAR) -> NDArray[np.float64]:
    """Cut (M, 2, 3) segments in a camera's frame at z = near; those behind it are dropped."""
    start, end = segments[:, 0], segments[:, 1]
    step = end - start
    with np.errstate(divide="ignore", invalid="ignore"):
        cut = start + (near - start[:, 2:]) / step[:, 2:] * step
    start_kept = np.where(start[:, 2:] >= near, start, cut)
    end_kept = np.where(end[:, 2:] >= near, end, cut)
    visible = (start[:, 2] >= near) | (end[:, 2] >= near)
    return np.stack([start_kept, end_kept], 1)[visible]


class _Projection:
    """From the BEV frame to pixels of the finished tile."""

    def __init__(self, model: CameraModel, camera_from_bev: NDArray, shrink: float) -> None:
        self.model, self.camera_from_bev, self.shrink = model, camera_from_bev, shrink

    def pixels(self, in_camera: NDArray) -> NDArray[np.float64]:
        """(..., 3) in the camera's frame -> (..., 2)."""
        return (self.model.project(in_camera)[..., :2] + 0.5) * self.shrink - 0.5

    def segments(self, lines: NDArray) -> NDArray[np.float64]:
        """(M, 2, 3) lines in the BEV frame -> (M', 2, 2) pixels of their visible pieces."""
        lines = clip_near(apply(self.camera_from_bev, lines))
        pieces = 1 if isinstance(self.model, Pinhole) else PIECES
        at = np.linspace(0, 1, pieces + 1)[:, None]
        points = lines[:, None, 0] + at * (lines[:, None, 1] - lines[:, None, 0])
        pixels = self.pixels(points)  # (M', pieces + 1, 2)
        return np.stack([pixels[:, :-1], pixels[:, 1:]], 2).reshape(-1, 2, 2)


def _reduction(factor: float) -> int:
    """The strongest of the cheap ways to decode that still gives the pixels needed."""
    return max(r for r in (1, 2, 4, 8) if r <= max(factor, 1))


def _draw_boxes(
    canvas: Canvas, projection: _Projection, boxes: Detections, names: tuple[str, ...] | None
) -> None:
    corners = boxes.boxes.corners()
    middle = apply(projection.camera_from_bev, boxes.boxes.center)
    taken: list[tuple[float, float, float, float]] = []
    order = np.argsort(-np.linalg.norm(middle, axis=1), kind="stable")  # far to near
    placed = []
    for i in order:
        segments = projection.segments(corners[i][EDGES])
        colour, score = DARK.of_class(int(boxes.boxes.label[i])), float(boxes.score[i])
        strength = 0.4 + 0.6 * min(max(score, 0.0), 1.0)
        if not len(segments) or not _touches(segments, canvas):
            continue
        _fill_face(canvas, projection, corners[i][[0, 3, 7, 4]], colour, 0.28 * strength)
        canvas.lines(segments, DARK.background, 2.6, 0.35 * strength)
        canvas.lines(segments, colour, 1.5, strength)
        canvas.lines(projection.segments(corners[i][FRONT]), colour, 0.8, 0.6 * strength)
        placed.append((i, segments, colour, score))
    for i, segments, colour, score in reversed(placed):  # the nearest label wins the room
        if names is not None:
            text = title_of(names[boxes.boxes.label[i]]) if boxes.boxes.label[i] >= 0 else "other"
            text = text if score >= 1 else f"{text} {score:.2f}".replace("0.", ".")
            _label(canvas, segments, text, colour, taken)


def _touches(segments: NDArray, canvas: Canvas) -> bool:
    low, high = segments.min((0, 1)), segments.max((0, 1))
    return bool((high > 0).all() and low[0] < canvas.width and low[1] < canvas.height)


def _fill_face(
    canvas: Canvas, projection: _Projection, corners: NDArray, colour: Colour, opacity: float
) -> None:
    in_camera = apply(projection.camera_from_bev, corners)
    ring = clip_near(np.stack([in_camera, np.roll(in_camera, -1, 0)], 1))
    if len(ring) >= 2:
        canvas.polygon(projection.pixels(ring.reshape(-1, 3)), colour, opacity)


def _label(canvas: Canvas, segments: NDArray, text: str, colour: Colour, taken: list) -> None:
    """Write above the box, if it is tall enough to matter and the room is not taken."""
    low = np.clip(segments.min((0, 1)), 0, None)
    high = np.minimum(segments.max((0, 1)), (canvas.width, canvas.height))
    if high[1] - low[1] < 14:
        return
    size = 10
    width, height = text_size(text, size, True)
    width, height = width + size * 0.9, height + size * 0.24
    left = min(max(low[0], 2), canvas.width - width - 2)
    top = max(low[1] - height - 1, 30 if left < 110 else 2)
    room = (left, top, left + width, top + height)
    if any(_overlap(room, other) for other in taken):
        return
    taken.append(room)
    canvas.text((left, top), text, DARK.background, size, bold=True, pill=colour, pill_opacity=0.9)


def _overlap(a: tuple[float, ...], b: tuple[float, ...]) -> bool:
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]


def _draw_points(canvas: Canvas, projection: _Projection, points: NDArray) -> None:
    in_camera = apply(projection.camera_from_bev, points[:, :3].astype(np.float64))
    in_camera = in_camera[in_camera[:, 2] > 0.5]
    order = np.argsort(-in_camera[:, 2], kind="stable")  # the nearest on top
    in_camera = in_camera[order]
    value = np.log(in_camera[:, 2] / 3) / np.log(60 / 3)
    canvas.dots(projection.pixels(in_camera), ramp(value, DEPTH_COLOURS), 2 * canvas.scale)


def _no_camera(width: int, theme: Theme) -> NDArray[np.uint8]:
    canvas = Canvas.blank(width, round(width * 9 / 16), theme.surface)
    where = ((canvas.width - 1) / 2, (canvas.height - 1) / 2)
    canvas.text(where, "no camera", theme.muted, 14, anchor=(0.5, 0.5))
    return canvas.finish()
