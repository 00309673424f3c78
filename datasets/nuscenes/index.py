"""Build the index of a nuScenes folder from its JSON tables; ``frame_index.py`` has its layout."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pyarrow as pa

from ..errors import DataError
from . import frame_index as layout
from .frame_index import FrameIndex
from .index_boxes import box_column
from .index_files import SensorFiles
from .joins import Progress, Tables, list_column, name_column, starts_of, take
from .tables import version_folder

__all__ = ["FrameIndex", "build_index"]


def build_index(
    root: Path | str,
    version: str,
    previous_sweeps: int = 10,
    progress: Progress | None = None,
    index_dir: Path | str | None = None,
) -> Path:
    """Read a version's tables and write its index.

    Args:
        root: the folder that holds ``<version>/``, ``samples/`` and ``sweeps/``.
        version: for instance ``v1.0-trainval``.
        previous_sweeps: previous LiDAR sweeps to keep for every key frame.
        progress: is told what was done, a line at a time.
        index_dir: where to write; by default beside the tables, or in the user's cache where
            that is not possible.

    Returns:
        The index file.

    Raises:
        DataError: if the folder is not nuScenes', or a table is missing, broken or contradicts
            another.
    """
    tables = Tables.read(Path(root), version, progress or (lambda line: None))
    batch = _frames(tables, previous_sweeps)
    properties = {
        "format": layout.FORMAT,
        "version": version,
        "previous_sweeps": previous_sweeps,
        "tables": layout.table_stamps(version_folder(root, version)),
    }
    path = _write(batch, properties, layout.index_paths(root, version, index_dir))
    if progress:
        progress(f"{batch.num_rows:,} key frames, {path.stat().st_size / 1e6:,.0f} MB: {path}")
    return path


def _frames(tables: Tables, previous_sweeps: int) -> pa.RecordBatch:
    """One row for each key frame, in the order of scenes and of time."""
    scene = tables.join("sample", tables.sample["scene_token"], "scene", tables.scene)
    log = tables.join("scene", tables.scene["log_token"], "log", tables.log)
    time = tables.sample["timestamp"].to_numpy()
    order = np.lexsort((time, scene))
    position = np.empty(len(order), np.int64)  # sample row -> frame
    position[order] = np.arange(len(order))

    files = SensorFiles(tables, position)
    sweeps = files.sweeps(previous_sweeps)  # (F, 1 + previous_sweeps)
    images, camera_starts = files.images()
    key = np.where(sweeps[:, 0] >= 0, sweeps[:, 0], files.nearest_image(time[order]))
    if (key < 0).any():
        token = tables.sample["token"][int(order[np.argmax(key < 0)])].as_py()
        raise DataError(
            f"{tables.folder}/sample_data.json has no LiDAR file and no image for sample {token}; "
            "extract the metadata archive again"
        )
    columns = {
        "token": take(tables.sample["token"], order),
        "scene": name_column(take(tables.scene["name"], scene[order])),
        "location": name_column(take(tables.log["location"], log[scene[order]])),
        "timestamp_us": pa.array(files.time[key]),
        "pose": files.pose(key),
        "cameras": list_column(camera_starts, files.structs(images, layout.CAMERA)),
        "sweeps": list_column(
            starts_of((sweeps >= 0).sum(1)), files.structs(sweeps[sweeps >= 0], layout.SWEEP)
        ),
        "boxes": box_column(tables, position, time),
    }
    return pa.RecordBatch.from_arrays(list(columns.values()), schema=layout.SCHEMA)


def _write(batch: pa.RecordBatch, properties: dict, paths: list[Path]) -> Path:
    """Write to the first path that can be written; all of the file or nothing."""
    schema = batch.schema.with_metadata({"bevstack": json.dumps(properties)})
    for path in paths:
        partial = path.with_name(f"{path.name}.{os.getpid()}")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with pa.OSFile(str(partial), "wb") as sink, pa.ipc.new_file(sink, schema) as writer:
                writer.write_batch(batch)
            partial.replace(path)
            return path
        except OSError as error:
            reason = error
            partial.unlink(missing_ok=True) if partial.parent.is_dir() else None
    raise DataError(
        f"cannot write the index to {paths[-1].parent} ({reason}); choose another folder with "
        "index_dir"
    )
