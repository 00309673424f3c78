"""The video of a scene with all that a model finds, for a report."""

from __future__ import annotations

from itertools import takewhile
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...datasets.frame import Frame
from ...datasets.sensors import global_from_bev
from ..evaluation.tracking_submission import read_tracking_submission
from ..evaluation.tracks import TrackedBoxes
from ..tracking.scenes import timeline
from ..visualize.outputs import Outputs, outputs_of
from ..visualize.overview import draw_overview
from ..visualize.trails import trails_at
from ..visualize.video import encode_webp
from .sections import SceneVideo

MAX_BYTES = 5_000_000  # of a video; what is larger is made of fewer or coarser frames
MAX_FRAMES = 40
FRAMES_PER_SECOND = 2.0  # as key frames come: in real time
MIN_SCORE = 0.25
WIDTH = 1200


def scene_video(model: Any, data: Any, tracks: Path | None = None) -> SceneVideo:
    """The first scene of the validation split.

    Args:
        model: with the trained weights.
        data: a ``NuScenesData``.
        tracks: a tracking submission of the split, to be drawn too.
    """
    reader = data.reader(data.val_split)
    scene = reader[0].scene
    count = sum(1 for _ in takewhile(lambda i: reader[i].scene == scene, range(len(reader))))
    frames = list(range(min(count, MAX_FRAMES)))
    tracked = read_tracking_submission(tracks, reader.tokens) if tracks is not None else None
    time = timeline(reader) if tracked is not None else None
    pictures = []
    dataset = data.in_order(reader, data.val_steps).dataset
    outputs = outputs_of(model, dataset, frames)
    for i, found in zip(frames, outputs, strict=True):
        frame, ways = reader[i], ()
        if tracked is not None and time is not None:
            ways = trails_at(tracked, time, i, frame, MIN_SCORE)
        pictures.append(
            draw_overview(
                frame, found.boxes, found.map, _masks(data, frame, found), voxels=found.voxels,
                trails=ways, grid=model.grid, map_grid=found.map_grid, width=WIDTH,
                min_score=MIN_SCORE, title=f"{scene}, frame {i}",
            )
        )  # fmt: skip
    return SceneVideo(small_webp(pictures), f"{scene}, in real time: {_named(outputs[0], tracked)}")


def _named(found: Outputs, tracked: TrackedBoxes | None) -> str:
    """What there is to be seen, in words."""
    parts = {"boxes": found.boxes, "tracks": tracked, "map": found.map, "voxels": found.voxels}
    return ", ".join(name for name, part in parts.items() if part is not None)


def _masks(data: Any, frame: Frame, found: Outputs) -> NDArray[np.bool_] | None:
    rasterizer = data.encoder.rasterizer
    if rasterizer is None or found.map_grid is None:
        return None
    return rasterizer.masks(frame.location, global_from_bev(frame), found.map_grid)


def small_webp(pictures: list[NDArray[np.uint8]], max_bytes: int = MAX_BYTES) -> bytes:
    """Pictures as an animated WebP of a bounded size: coarser first, then with fewer frames."""
    rate = FRAMES_PER_SECOND
    for quality in (60, 40, 25):
        content = encode_webp(pictures, rate, quality)
        if len(content) <= max_bytes:
            return content
    while len(content) > max_bytes and len(pictures) > 1:
        pictures, rate = pictures[::2], rate / 2
        content = encode_webp(pictures, rate, quality)
    return content
