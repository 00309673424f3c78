"""``bevstack view``: pictures of frames."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

from ...datasets.nuscenes.label_files import LabelFolder, LabelFormat
from ...kernels.grid import BEVGrid


def view(
    root: Path,
    version: str = "v1.0-trainval",
    split: str | None = None,
    out: Path = Path("pictures"),
    predictions: Path | None = None,
    frames: list[int] | None = None,
    num_frames: int = 10,
    reach: float = 50.0,
    width: int = 1600,
    min_score: float = 0.25,
    index_dir: Path | None = None,
    video: Path | None = None,
    scene: str | None = None,
    frames_per_second: float = 3.0,
    rerun: str | None = None,
    occupancy: Path | None = None,
    format: LabelFormat = "occ3d",
) -> None:
    """Draw frames: all cameras with boxes, the scene from above, the map where there is one.

    Args:
        root: an indexed nuScenes folder.
        version: its tables' folder.
        split: draw frames of this split; default: of all.
        out: folder for the pictures.
        predictions: a submission JSON of exactly this split, to draw with the truth; tracks are
            drawn with the ways that they came.
        frames: which frames, by their number; default: ``num_frames`` spread over the split.
        num_frames: how many, if ``frames`` is not given.
        reach: metres to draw around the vehicle.
        width: of the pictures, pixels.
        min_score: predictions with a lower score are left out.
        index_dir: folder of the index, if not beside the tables.
        video: write all frames of a scene as one video, ``.mp4`` or (animated) ``.webp``.
        scene: draw all frames of this scene; default for a video and for Rerun: the first one.
        frames_per_second: of the video; key frames are 0.5 s apart.
        rerun: log the frames to this ``.rrd`` file, or to the Rerun ``viewer``, instead of drawing.
        occupancy: folder of occupancy labels, to draw each frame's voxels too.
        format: layout of that folder.
    """
    import numpy as np

    from ...datasets.geometry import inverse
    from ...datasets.nuscenes.maps import MapRasterizer
    from ...datasets.nuscenes.reader import NuScenesReader
    from ..evaluation.submission import read_submission
    from ..evaluation.tracking_submission import is_tracking_submission, read_tracking_submission
    from ..tracking.scenes import timeline
    from ..visualize.occupancy import draw_occupancy
    from ..visualize.overview import draw_overview, save_image
    from ..visualize.rerun_log import RerunLog
    from ..visualize.submission import detections_of
    from ..visualize.trails import trails_at
    from ..visualize.video import save_video
    from .progress import progress_bar

    labels = LabelFolder(occupancy, format, Path(root) / version) if occupancy else None
    reader = NuScenesReader(
        root, version, split, previous_sweeps=0, index_dir=index_dir, occupancy=labels
    )
    found, trails = None, None
    if predictions and is_tracking_submission(predictions):
        tracked = read_tracking_submission(predictions, reader.tokens)
        found, trails = tracked.boxes, partial(trails_at, tracked, timeline(reader))
    elif predictions:
        found = read_submission(predictions, reader.tokens)
    grid = BEVGrid((-reach, reach), (-reach, reach), reach / 250)
    maps = MapRasterizer(root) if MapRasterizer.is_available(root) else None
    spread = np.unique(np.linspace(0, len(reader) - 1, num_frames).round().astype(int))
    chosen = frames if frames is not None else spread.tolist()
    if scene or video or (rerun and frames is None):
        chosen = _frames_of(reader, scene)
    log = RerunLog(rerun) if rerun else None
    pictures = []
    with progress_bar("view", "frames") as advance:
        for done, i in enumerate(chosen, 1):
            if not 0 <= i < len(reader):
                raise ValueError(f"frame {i} does not exist; there are {len(reader)}")
            frame = reader[i]
            boxes = detections_of(found, i, frame) if found is not None else None
            ways = trails(i, frame, min_score) if trails else ()
            if log is not None:
                log.log(frame, boxes, ways, min_score)
                advance(done, len(chosen))
                continue
            masks = None
            if maps is not None:
                pose = frame.global_from_ego @ inverse(frame.bev_from_ego)
                masks = maps.masks(frame.location, pose, grid)
            picture = draw_overview(
                frame, boxes, None, masks, trails=ways, grid=grid, map_grid=grid, width=width,
                min_score=min_score,
            )  # fmt: skip
            if video is None:
                save_image(Path(out) / f"{i:05d}_{frame.token}.jpg", picture)
            else:
                pictures.append(picture)
            if frame.occupancy is not None and video is None:
                voxels = frame.occupancy()
                drawn = draw_occupancy(voxels.semantics, voxels.grid, "occupancy", width)
                save_image(Path(out) / f"{i:05d}_{frame.token}_occupancy.jpg", drawn)
            advance(done, len(chosen))
    if log is not None:
        log.close()
        print(f"{len(chosen)} frames in {rerun}")
    elif video is not None:
        save_video(video, pictures, frames_per_second)
        print(f"{len(pictures)} frames in {video}")
    else:
        print(f"{len(chosen)} pictures in {out}")


def _frames_of(reader: Any, scene: str | None) -> list[int]:
    """The frames of a scene in the order of time."""
    frames = [reader[i] for i in range(len(reader))]
    scene = scene or frames[0].scene
    mine = [i for i, frame in enumerate(frames) if frame.scene == scene]
    if not mine:
        known = ", ".join(dict.fromkeys(frame.scene for frame in frames))
        raise ValueError(f"there is no scene {scene!r} here, only: {known}")
    return sorted(mine, key=lambda i: frames[i].timestamp_us)
