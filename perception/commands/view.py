"""``bevstack view``: pictures of frames."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...datasets.nuscenes.label_files import LabelFolder, LabelFormat
from ...kernels.grid import BEVGrid

if TYPE_CHECKING:
    from ...datasets.frame import Frame
    from ..visualize.outputs import Outputs


def view(
    root: Path,
    version: str = "v1.0-trainval",
    split: str | None = None,
    out: Path = Path("pictures"),
    predictions: Path | None = None,
    model: Path | None = None,
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
    """Draw frames: cameras with boxes, the scene from above with its map, and occupancy.

    Args:
        root: an indexed nuScenes folder.
        version: its tables' folder.
        split: draw frames of this split; default: of all, or with a model its validation split.
        out: folder for the pictures.
        predictions: a submission JSON of exactly this split, to draw with the truth; tracks are
            drawn with the ways that they came.
        model: a run folder or an exported model, to draw all that it finds: boxes, map, voxels and,
            of a whole scene, tracks (of the default tracker, unless ``predictions`` has others).
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

    from ...datasets.nuscenes.reader import NuScenesReader
    from ..visualize.occupancy import draw_occupancy
    from ..visualize.overview import draw_overview, save_image
    from ..visualize.rerun_log import RerunLog
    from ..visualize.video import save_video
    from .progress import progress_bar

    labels = LabelFolder(occupancy, format, Path(root) / version) if occupancy else None
    loaded, dataset = None, None
    if model is not None:
        loaded, dataset = _load_model(model, root, version, split, index_dir, occupancy, format)
        reader = dataset.reader
    else:
        reader = NuScenesReader(
            root, version, split, previous_sweeps=0, index_dir=index_dir, occupancy=labels
        )
    grid = BEVGrid((-reach, reach), (-reach, reach), reach / 250)
    spread = np.unique(np.linspace(0, len(reader) - 1, num_frames).round().astype(int))
    chosen = frames if frames is not None else spread.tolist()
    whole_scene = bool(scene or video or (rerun and frames is None))
    if whole_scene:
        chosen = _frames_of(reader, scene)
    for i in chosen:
        if not 0 <= i < len(reader):
            raise ValueError(f"frame {i} does not exist; there are {len(reader)}")
    found, trails = _found(loaded, dataset, predictions, reader, chosen, whole_scene)
    truth = _truth(root, grid)
    log = RerunLog(rerun) if rerun else None
    pictures = []
    with progress_bar("view", "frames") as advance:
        for done, i in enumerate(chosen, 1):
            frame = reader[i]
            outputs = found(i, frame)
            true = truth(frame, outputs.map_grid)
            ways = trails(i, frame, min_score) if trails else ()
            if log is not None:
                log.log(frame, outputs, true, ways, min_score)
                advance(done, len(chosen))
                continue
            voxels = outputs.voxels or true.voxels
            picture = draw_overview(
                frame, outputs.boxes, outputs.map, true.map, voxels=voxels, trails=ways,
                grid=grid, map_grid=true.map_grid, width=width, min_score=min_score,
            )  # fmt: skip
            if video is None:
                save_image(Path(out) / f"{i:05d}_{frame.token}.jpg", picture)
            else:
                pictures.append(picture)
            large = {"occupancy, predicted": outputs.voxels, "occupancy, labels": true.voxels}
            drawn = [draw_occupancy(v, title, width) for title, v in large.items() if v is not None]
            if drawn and video is None:
                path = Path(out) / f"{i:05d}_{frame.token}_occupancy.jpg"
                save_image(path, np.concatenate(drawn))
            advance(done, len(chosen))
    if log is not None:
        log.close()
        print(f"{len(chosen)} frames in {rerun}")
    elif video is not None:
        save_video(video, pictures, frames_per_second)
        print(f"{len(pictures)} frames in {video}")
    else:
        print(f"{len(chosen)} pictures in {out}")


def _load_model(
    folder: Path,
    root: Path,
    version: str,
    split: str | None,
    index_dir: Path | None,
    occupancy: Path | None,
    format: LabelFormat,
) -> tuple[Any, Any]:
    """The model, and the encoded frames of the split."""
    from ..evaluation.exported import ExportedModel
    from ..runtime.manifest import MANIFEST
    from .train import load_run

    given = {"index_dir": index_dir, "occupancy": occupancy}
    data_options = {name: str(path) for name, path in given.items() if path is not None}
    if occupancy is not None:
        data_options["occupancy_format"] = format
    model, data, _ = load_run(
        folder, root=str(root), version=version, val_split=split, **data_options
    )
    if data.val_split is None:
        raise ValueError(f"the run {folder} has no validation split; give --split")
    loader = data.in_order(data.reader(data.val_split), data.val_steps)
    exported = (Path(folder) / MANIFEST).exists()
    return ExportedModel(folder) if exported else model, loader.dataset


def _found(
    model: Any,
    dataset: Any,
    predictions: Path | None,
    reader: Any,
    chosen: list[int],
    whole_scene: bool,
) -> tuple[Callable[[int, Frame], Outputs], Callable | None]:
    """What gives a frame's predictions, and its trails."""
    from dataclasses import replace

    from ..evaluation.submission import read_submission
    from ..evaluation.tracking_submission import is_tracking_submission, read_tracking_submission
    from ..tracking.scenes import timeline
    from ..visualize.outputs import Outputs, outputs_of, tracks_of
    from ..visualize.submission import detections_of
    from ..visualize.trails import trails_at
    from .progress import progress_bar

    outputs: dict[int, Outputs] = {}
    if model is not None:
        with progress_bar("run the model", "frames") as advance:
            outputs = dict(zip(chosen, outputs_of(model, dataset, chosen, advance), strict=True))
    boxes, tracked = None, None
    if predictions and is_tracking_submission(predictions):
        tracked = read_tracking_submission(predictions, reader.tokens)
        boxes = tracked.boxes
    elif predictions:
        boxes = read_submission(predictions, reader.tokens)
    if tracked is None and whole_scene and all(o.boxes is not None for o in outputs.values()):
        tracked = tracks_of(list(outputs.values()), list(outputs), reader) if outputs else None

    def found(i: int, frame: Frame) -> Outputs:
        mine = outputs.get(i, Outputs())
        return mine if boxes is None else replace(mine, boxes=detections_of(boxes, i, frame))

    return found, partial(trails_at, tracked, timeline(reader)) if tracked is not None else None


def _truth(root: Path, grid: BEVGrid) -> Callable[[Frame, BEVGrid | None], Outputs]:
    """What gives a frame's true map, on a given grid or ``grid``, and voxels."""
    from ...datasets.nuscenes.maps import MapRasterizer
    from ...datasets.sensors import global_from_bev
    from ..visualize.occupancy import Voxels
    from ..visualize.outputs import Outputs

    maps = MapRasterizer(root) if MapRasterizer.is_available(root) else None

    def truth(frame: Frame, map_grid: BEVGrid | None) -> Outputs:
        masks, map_grid = None, map_grid or grid
        if maps is not None:
            masks = maps.masks(frame.location, global_from_bev(frame), map_grid)
        voxels = Voxels.of(frame.occupancy()) if frame.occupancy is not None else None
        return Outputs(None, masks, map_grid, voxels)

    return truth


def _frames_of(reader: Any, scene: str | None) -> list[int]:
    """The frames of a scene in the order of time."""
    frames = [reader[i] for i in range(len(reader))]
    scene = scene or frames[0].scene
    mine = [i for i, frame in enumerate(frames) if frame.scene == scene]
    if not mine:
        known = ", ".join(dict.fromkeys(frame.scene for frame in frames))
        raise ValueError(f"there is no scene {scene!r} here, only: {known}")
    return sorted(mine, key=lambda i: frames[i].timestamp_us)
