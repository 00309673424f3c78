"""What corruptions look like: one frame, clean and at each severity, with the model's boxes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...datasets.batch import Batch
from ...datasets.boxes import Detections
from ...datasets.frame import Camera, Frame
from ...kernels.grid import BEVGrid
from ..visualize.bev import draw_bev
from ..visualize.cameras import draw_camera, in_order, tile
from ..visualize.canvas import Canvas
from ..visualize.scene import key_points, truth_of
from ..visualize.style import DARK, title_of
from .benchmark import Subject, spread
from .cells import SENSORS, Cell

VIEW = BEVGrid((-40.0, 40.0), (-40.0, 40.0), 1.0)
MIN_SCORE = 0.25
WIDTH = 1640  # of a strip, pixels
LOST = "lost sensors"  # name of the strip that stands for all of them
LARGEST = 405  # of a picture in it


@dataclass(frozen=True)
class Moment:
    """A frame under a cell, and what the model says about it."""

    title: str
    frame: Frame  # as it is drawn
    images: dict[str, NDArray[np.uint8]]  # (3, H, W) as the model has them, by channel
    found: Detections | None


@dataclass(frozen=True)
class Strip:
    """The pictures of a corruption side by side."""

    group: str
    name: str
    image: NDArray[np.uint8]


def picture_name(group: str, name: str) -> str:
    """The name of a strip's file."""
    return f"{group}.{name}.jpg".replace(" ", "_")


def draw_strips(
    subject: Subject, cells: Sequence[Cell], say: Callable[[int, int], None] | None = None
) -> list[Strip]:
    """A strip for each corruption of the plan, and one for the lost sensors that stand for all.

    Args:
        subject: the model and its frames.
        cells: the plan, the clean cell first.
        say: called with the number of pictures done and in all.
    """
    index = busiest_frame(subject.reader)
    clean = {attacked: _moment(subject, cells[0], index, "clean", attacked) for attacked in
             {cell.attack is not None for cell in cells}}  # fmt: skip
    rows: dict[tuple[str, str], list[Cell]] = {}
    for cell in cells[1:]:
        shared = cell.group == SENSORS
        rows.setdefault((cell.group, LOST if shared else cell.name), []).append(cell)
    rows = {k: _first_of_kind(v) if k[0] == SENSORS else v for k, v in rows.items()}
    total, done = sum(map(len, rows.values())), 0
    strips = []
    for (group, name), members in rows.items():
        moments = [clean[members[0].attack is not None]]
        for cell in members:
            title = cell.name if group == SENSORS else f"severity {cell.severity}"
            title = "attacked" if cell.attack else title
            moments.append(_moment(subject, cell, index, title, cell.attack is not None))
            done += 1
            if say:
                say(done, total)
        strips.append(Strip(group, name, _strip(moments)))
    return strips


def busiest_frame(reader: Any) -> int:
    """The frame with the most annotated boxes among 64 spread over all."""

    def boxes(index: int) -> int:
        annotations = reader.global_annotations(index)
        return 0 if annotations is None else int((annotations.num_lidar_points > 5).sum())

    return max(map(int, spread(len(reader), 64)), key=boxes)


def _first_of_kind(cells: list[Cell]) -> list[Cell]:
    """Those of all cameras or the LiDAR, and of one camera: the others look alike."""
    single = [cell for cell in cells if cell.name.startswith("CAM_")]
    chosen = [cell for cell in single if cell.name == "CAM_FRONT lost"] or single[:1]
    return [cell for cell in cells if cell not in single] + chosen


def _moment(subject: Subject, cell: Cell, index: int, title: str, as_encoded: bool) -> Moment:
    """A patch is in the network's images, so there these are drawn, not the camera's own."""
    seen = subject.seen(index, cell)
    images = {c.name: i for c, i in zip(seen.frame.cameras, seen.batch.images.numpy())}
    frame = cell.step(subject.reader[index], subject.seed)
    if as_encoded:
        cameras = [_showing(c, images[c.name]) for c in seen.frame.cameras if c.name in images]
        frame = replace(seen.frame, cameras=tuple(cameras))
    return Moment(title, frame, images, _detect(subject, seen.batch))


def _detect(subject: Subject, batch: Batch) -> Detections | None:
    import torch

    model, moved = subject.model, batch.to(subject.device)
    model.train(False)
    with torch.inference_mode():
        decoded = model.decode(model(moved, use_camera=True, use_lidar=True), moved)
    return decoded["detection"][0] if "detection" in decoded else None


def _showing(camera: Camera, image: NDArray[np.uint8]) -> Camera:
    pixels = np.ascontiguousarray(image.transpose(1, 2, 0))
    return replace(camera, load=lambda reduction=1: pixels[::reduction, ::reduction])


def _strip(moments: list[Moment]) -> NDArray[np.uint8]:
    """Images above, the scene from above below; a column for each moment."""
    gap = 6
    width = min(LARGEST, (WIDTH - gap * (len(moments) - 1)) // len(moments))
    camera = _most_changed(moments)
    above = [_camera_panel(m, camera, width) for m in moments] if camera else []
    height = max((panel.shape[0] for panel in above), default=0)
    above = [_padded(panel, height) for panel in above]
    below = [
        draw_bev(
            key_points(m.frame), m.found, truth_of(m.frame), grid=VIEW, size_px=width,
            min_score=MIN_SCORE, bev_from_ego=m.frame.bev_from_ego, title=m.title,
        )
        for m in moments
    ]  # fmt: skip
    return tile(above + below, len(moments), DARK.background, gap)


def _most_changed(moments: list[Moment]) -> str | None:
    """The channel whose image differs most from the clean one; the front camera if none does."""
    names = [camera.name for camera in in_order(moments[0].frame.cameras)]
    names.sort(key=lambda name: name != "CAM_FRONT")
    clean = moments[0].images

    def change(name: str) -> float:
        worst = 0.0
        for moment in moments[1:]:
            if name not in moment.images:
                return 256.0
            difference = clean[name].astype(np.int16) - moment.images[name]
            worst = max(worst, float(np.abs(difference).mean()))
        return worst

    return max(names, key=change, default=None) if clean else None


def _camera_panel(moment: Moment, name: str, width: int) -> NDArray[np.uint8]:
    for camera in moment.frame.cameras:
        if camera.name == name:
            return draw_camera(
                moment.frame, camera, moment.found, width=width, min_score=MIN_SCORE, labels=False
            )  # fmt: skip
    canvas = Canvas.blank(width, round(width * 9 / 16), DARK.surface)
    middle = ((canvas.width - 1) / 2, (canvas.height - 1) / 2)
    canvas.text(middle, f"no {title_of(name)} image", DARK.muted, 13, anchor=(0.5, 0.5))
    return canvas.finish()


def _padded(image: NDArray[np.uint8], height: int) -> NDArray[np.uint8]:
    """The image on a plain background of a common height."""
    page = np.empty((height, image.shape[1], 3), np.uint8)
    page[:] = DARK.background
    top = (height - image.shape[0]) // 2
    page[top : top + image.shape[0]] = image
    return page
