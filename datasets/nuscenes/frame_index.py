"""The index of a nuScenes folder: one Arrow file with a row per key frame, mapped into memory.

Opening reads nothing but the file's footer, and processes that have it open share its pages. A
frame's cameras, LiDAR sweeps and boxes are list columns, whose fields are plain numpy views.
``index.py`` writes it.
"""

# pyarrow makes its compute functions when it is imported, so no type checker sees them.
# pyright: reportAttributeAccessIssue=false

from __future__ import annotations

import hashlib
import json
import os
from functools import cached_property
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from ..errors import DataError
from .tables import SCHEMAS, version_folder

FORMAT = 2  # of the index file; raise it with every change to SCHEMA or to its meaning

NAME = pa.dictionary(pa.int32(), pa.string())
POSE = {  # as in the tables: metres, and quaternions w, x, y, z
    "translation": pa.list_(pa.float64(), 3),
    "rotation": pa.list_(pa.float64(), 4),
}
_FILE = {
    "file": pa.string(),  # relative to the dataset's root
    "timestamp_us": pa.int64(),
    "calibration": pa.struct({"token": NAME, **POSE}),  # ego_from_sensor
    "pose": pa.struct({"token": pa.string(), **POSE}),  # global_from_ego
}
CAMERA = pa.struct(
    {
        "channel": NAME,
        **_FILE,
        "intrinsic": pa.list_(pa.float64(), 9),
        "width": pa.int32(),
        "height": pa.int32(),
    }
)
SWEEP = pa.struct(_FILE)
BOX = pa.struct(  # in the global frame
    {
        "center": pa.list_(pa.float64(), 3),
        "size": pa.list_(pa.float64(), 3),  # length, width, height
        "yaw": pa.float64(),
        "velocity": pa.list_(pa.float64(), 3),
        "category": NAME,
        "attribute": NAME,  # "" for none
        "instance": NAME,
        "visibility": pa.int8(),  # 1..4, 0 if unknown
        "num_lidar_points": pa.int32(),
        "num_radar_points": pa.int32(),
    }
)
SCHEMA = pa.schema(
    {
        "token": pa.string(),
        "scene": NAME,
        "location": NAME,
        "timestamp_us": pa.int64(),  # of the key LiDAR sweep
        "pose": pa.struct({"token": pa.string(), **POSE}),  # of the vehicle at that time
        "cameras": pa.list_(CAMERA),  # by channel name
        "sweeps": pa.list_(SWEEP),  # the key sweep, then the previous ones, nearest first
        "boxes": pa.list_(BOX),
    }
)


def index_paths(root: Path | str, version: str, index_dir: Path | str | None = None) -> list[Path]:
    """Where an index may be, best place first.

    That is beside the tables, or in the user's cache where the dataset cannot be written; or
    ``index_dir`` and nowhere else.
    """
    if index_dir is not None:
        return [Path(index_dir) / version / "frames.arrow"]
    folder = version_folder(root, version)
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    digest = hashlib.sha256(str(folder.resolve()).encode()).hexdigest()[:16]
    return [
        folder / ".bevstack" / "frames.arrow",
        cache / "bevstack" / f"{version}-{digest}" / "frames.arrow",
    ]


def table_stamps(folder: Path) -> dict[str, list[int]]:
    """Size in bytes and time of change (ns) of the tables, by which a stale index is noticed."""
    stats = {name: (folder / f"{name}.json").stat() for name in SCHEMAS}
    return {name: [stat.st_size, stat.st_mtime_ns] for name, stat in stats.items()}


class Column:
    """A list column: the rows of key frame ``i`` are ``span(i)`` of every field."""

    def __init__(self, column: pa.ListArray) -> None:
        self.starts: NDArray[np.int32] = column.offsets.to_numpy()  # (F + 1,)
        self.rows: pa.StructArray = column.values

    def span(self, frame: int) -> slice:
        """The rows of a key frame."""
        return slice(int(self.starts[frame]), int(self.starts[frame + 1]))


class FrameIndex:
    """An open index; see the module for its layout.

    Args:
        path: the Arrow file.
        root: the dataset's folder, to which the file names are relative.
        version: the version's name.
    """

    def __init__(self, path: Path, root: Path, version: str) -> None:
        self.path, self.root, self.version = path, root, version
        rebuild = f"run `bevstack index {root} --version {version}` to build it again"
        try:
            batches = pa.ipc.open_file(pa.memory_map(str(path)))
            properties = json.loads((batches.schema.metadata or {}).get(b"bevstack", b"{}"))
        except (pa.ArrowException, OSError, ValueError) as error:
            raise DataError(f"the index {path} cannot be read ({error}); {rebuild}") from error
        if properties.get("format") != FORMAT:
            raise DataError(
                f"the index {path} has format {properties.get('format')}, this bevstack reads "
                f"format {FORMAT}; {rebuild}"
            )
        if properties["tables"] != table_stamps(version_folder(root, version)):
            raise DataError(f"the tables in {root / version} changed since {path}; {rebuild}")
        self.previous_sweeps: int = properties["previous_sweeps"]  # of a frame, at most
        self.batch = batches.get_batch(0)

    @classmethod
    def open(
        cls, root: Path | str, version: str, index_dir: Path | str | None = None
    ) -> FrameIndex:
        """Open the index of a dataset; builds nothing.

        Raises:
            DataError: if there is no index, or it is of another format or of older tables.
        """
        paths = index_paths(root, version, index_dir)
        for path in paths:
            if path.is_file():
                return cls(path, Path(root), version)
        version_folder(root, version)  # a clearer error where the folder is wrong
        raise DataError(
            f"{paths[0]} does not exist; run `bevstack index {root} --version {version}` first"
        )

    def __len__(self) -> int:
        return self.batch.num_rows

    def __reduce__(self):
        """A process that gets a pickled index maps the file again."""
        return FrameIndex, (self.path, self.root, self.version)

    @cached_property
    def cameras(self) -> Column:
        """The images of the key frames."""
        return Column(self.batch.column("cameras"))

    @cached_property
    def sweeps(self) -> Column:
        """The LiDAR sweeps of the key frames, nearest first."""
        return Column(self.batch.column("sweeps"))

    @cached_property
    def boxes(self) -> Column:
        """The annotations of the key frames, in the global frame."""
        return Column(self.batch.column("boxes"))

    def rows_of_scenes(self, scenes: tuple[str, ...]) -> NDArray[np.int64]:
        """The key frames of some scenes; scenes that are not in the dataset have none."""
        column = self.batch.column("scene")
        chosen = pc.is_in(column.dictionary, pa.array(scenes, pa.string())).to_numpy(False)
        return np.flatnonzero(chosen[column.indices.to_numpy()])


def numbers(values: pa.Array, rows: slice) -> NDArray:
    """Rows of a number column (R,) or vector column (R, width), without copying."""
    part = values[rows.start : rows.stop]
    if pa.types.is_fixed_size_list(part.type):
        return part.flatten().to_numpy().reshape(-1, part.type.list_size)
    return part.to_numpy()


def names(values: pa.Array, rows: slice) -> tuple[str, ...]:
    """Rows of a text column."""
    return tuple(values[rows.start : rows.stop].to_pylist())


def is_rigid(translation: NDArray, rotation: NDArray) -> NDArray[np.bool_]:
    """(R,): whether (R, 3) translations and (R, 4) quaternions make transforms."""
    length = np.linalg.norm(rotation, axis=1)
    return np.isfinite(translation).all(1) & (length > 0) & (length < np.inf)
