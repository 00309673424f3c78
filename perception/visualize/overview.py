"""One picture of a frame: its cameras on top, seen from above below, a legend at the bottom."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from ...datasets.boxes import Detections
from ...datasets.frame import Frame
from ...datasets.nuscenes.classes import DETECTION_CLASSES, MAP_CLASSES, OCCUPANCY_CLASSES
from ...kernels.grid import BEVGrid
from .bev import draw_bev
from .cameras import draw_cameras
from .canvas import Canvas, text_size
from .occupancy import Voxels, draw_occupancy_square
from .scene import key_points, truth_of
from .style import DARK, OCCUPANCY_COLOURS, Theme, title_of
from .trails import Trail

GAP = 12


def draw_overview(
    frame: Frame,
    boxes: Detections | None = None,
    map_probabilities: NDArray | None = None,
    map_masks: NDArray | None = None,
    *,
    voxels: Voxels | None = None,
    trails: Sequence[Trail] = (),
    grid: BEVGrid,
    map_grid: BEVGrid | None = None,
    width: int = 1600,
    min_score: float = 0.1,
    title: str | None = None,
    theme: Theme = DARK,
) -> NDArray[np.uint8]:
    """Compose cameras, prediction and truth; without predictions, truth alone.

    Args:
        frame: the moment; its annotations are the truth.
        boxes: predictions in the BEV frame.
        map_probabilities: (K, X, Y) predicted map.
        map_masks: (K, X, Y) true map.
        voxels: occupancy, drawn beside the views from above: predicted, or labels where nothing is.
        trails: the ways of tracked objects.
        grid: the region to show from above.
        map_grid: where the maps lie; None: on ``grid``.
        width: of the picture, about.
        min_score: predictions with a lower score are left out.
        title: headline; None: scene and token.
        theme: colours.

    Returns:
        (H, W, 3) uint8 RGB.
    """
    truth = truth_of(frame)
    predicted = boxes is not None or map_probabilities is not None
    inner = width - 2 * GAP
    panels = 2 if voxels is None else 3
    cameras = draw_cameras(
        frame, boxes if predicted else truth, truth if predicted else None,
        trails=trails, tile_width=(inner - 8) // 3, min_score=min_score, theme=theme,
    )  # fmt: skip
    points = key_points(frame)
    common = {"grid": grid, "map_grid": map_grid, "bev_from_ego": frame.bev_from_ego}
    common |= {"theme": theme, "min_score": min_score, "size_px": _panel_size(grid, inner, panels)}
    if predicted:
        left = draw_bev(
            points, boxes, truth, map_probabilities, trails=trails, title="PREDICTION", **common
        )
        right = draw_bev(points, truth, None, map_masks, title="TRUTH", **common)
    elif map_masks is not None:
        left = draw_bev(points, truth, title="LIDAR", **common)
        right = draw_bev(None, truth, None, map_masks, title="MAP", **common)
    else:
        left = draw_bev(points, colour_by="intensity", title="LIDAR INTENSITY", **common)
        right = draw_bev(points, truth, title="BOXES", **common)
    views = [left, right]
    if voxels is not None:
        side = (inner - GAP * (panels - 1)) // panels
        views.append(draw_occupancy_square(voxels, "OCCUPANCY", side, theme))
    has_map = map_probabilities is not None or map_masks is not None
    head = _headline(title or f"{frame.scene} · {frame.token}", inner, theme)
    foot = draw_legend(inner, maps=has_map, voxels=voxels is not None, truth=predicted, theme=theme)
    return _stack([head, cameras, _side_by_side(views, inner, theme), foot], width, theme)


def draw_legend(
    width: int,
    *,
    maps: bool = True,
    voxels: bool = False,
    truth: bool = True,
    theme: Theme = DARK,
) -> NDArray[np.uint8]:
    """What the colours mean, in as many rows as the width asks for."""
    entries = [
        (title_of(name), theme.classes[i], False) for i, name in enumerate(DETECTION_CLASSES)
    ]
    if maps:
        entries += [(title_of(name), theme.maps[i], True) for i, name in enumerate(MAP_CLASSES)]
    if voxels:
        entries += [
            (f"{title_of(name)} (voxels)", OCCUPANCY_COLOURS[i], True)
            for i, name in enumerate(OCCUPANCY_CLASSES)
            if name not in DETECTION_CLASSES
        ]
    if truth:
        entries.append(("truth (dashed)", theme.truth, False))
    size, chip, row_height = 12, 12, 22
    places, left, top = [], 0, 0
    for text, _, _ in entries:
        span = chip + 6 + text_size(text, size)[0] + 18
        if left and left + span > width:
            left, top = 0, top + row_height
        places.append((left, top))
        left += span
    canvas = Canvas.blank(width, top + row_height, theme.background)
    for (text, colour, filled), (left, top) in zip(entries, places, strict=True):
        v = top + row_height / 2
        corners = np.array([(0, -5), (chip, -5), (chip, 5), (0, 5)]) + np.array([left + 1, v])
        canvas.polygon(corners, colour, 1.0 if filled else 0.4)
        if not filled:
            outline = np.stack([corners, np.roll(corners, -1, 0)], 1)
            canvas.lines(outline, colour, 1.4, dash=3 if text.startswith("truth") else 0)
        canvas.text((left + chip + 7, v), text, theme.muted, size, anchor=(0, 0.5))
    return canvas.finish()


def save_image(path: Path | str, image: NDArray[np.uint8], quality: int = 88) -> None:
    """Write an RGB picture; the ending of the name says the format."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(encode_image(image, path.suffix, quality))


def encode_image(image: NDArray[np.uint8], suffix: str = ".jpg", quality: int = 80) -> bytes:
    """An RGB picture as the bytes of a file, ``.jpg`` or ``.png``."""
    options = [cv2.IMWRITE_JPEG_QUALITY, quality, cv2.IMWRITE_JPEG_OPTIMIZE, 1]
    jpeg = suffix.lower() in (".jpg", ".jpeg")
    done, data = cv2.imencode(suffix, image[..., ::-1], options if jpeg else [])
    assert done
    return data.tobytes()


def _panel_size(grid: BEVGrid, inner: int, panels: int) -> int:
    """Longer side of a view from above, so that so many panels fill the width."""
    length, breadth = np.ptp(grid.x_range), np.ptp(grid.y_range)
    return int((inner - GAP * (panels - 1)) / panels * max(length, breadth) / breadth)


def _side_by_side(images: list[NDArray], width: int, theme: Theme) -> NDArray[np.uint8]:
    page = _blank(width, max(image.shape[0] for image in images), theme)
    left = 0
    for image in images:
        page[: image.shape[0], left : left + image.shape[1]] = image
        left += image.shape[1] + GAP
    return page


def _stack(parts: list[NDArray], width: int, theme: Theme) -> NDArray[np.uint8]:
    page = _blank(width, sum(p.shape[0] for p in parts) + GAP * (len(parts) + 1), theme)
    top = GAP
    for part in parts:
        page[top : top + part.shape[0], GAP : GAP + part.shape[1]] = part
        top += part.shape[0] + GAP
    return page


def _headline(text: str, width: int, theme: Theme) -> NDArray[np.uint8]:
    canvas = Canvas.blank(width, 22, theme.background, scale=1)
    canvas.text((0, 10.5), text, theme.text, 15, bold=True, anchor=(0, 0.5))
    return canvas.finish()


def _blank(width: int, height: int, theme: Theme) -> NDArray[np.uint8]:
    return np.broadcast_to(np.asarray(theme.background, np.uint8), (height, width, 3)).copy()
