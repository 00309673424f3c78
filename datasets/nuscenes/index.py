"""Build the index of a nuScenes folder from its JSON tables; ``frame_index.py`` has its layout.

Tables are joined by Arrow's hash look-ups on their token columns: a join is an array of row
numbers, with no Python object per record.
"""

from __future__ import annotations

import json
import os
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from ..errors import DataError
from ..geometry import rotation_from_quaternion, yaw_of
from . import frame_index as layout
from .frame_index import FrameIndex
from .tables import SCHEMAS, read_table, table_path, version_folder

__all__ = ["FrameIndex", "build_index"]

Progress = Callable[[str], None]
Rows = NDArray[np.int64]  # row numbers in a table; -1 for none

_LEVELS = ("v0-40", "v40-60", "v60-80", "v80-100")
_MAX_GAP_S = 1.5  # between the key frames that a velocity is taken from; the devkit's rule


def build_index(
    root: Path | str,
    version: str,
    num_sweeps: int = 10,
    progress: Progress | None = None,
    index_dir: Path | str | None = None,
) -> Path:
    """Read a version's tables and write its index.

    Args:
        root: the folder that holds ``<version>/``, ``samples/`` and ``sweeps/``.
        version: for instance ``v1.0-trainval``.
        num_sweeps: previous LiDAR sweeps to keep for every key frame.
        progress: is told what was done, a line at a time.
        index_dir: where to write; by default beside the tables, or in the user's cache where
            that is not possible.

    Returns:
        The index file.

    Raises:
        DataError: if the folder is not nuScenes', or a table is missing, broken or contradicts
            another.
    """
    tables = _Tables.read(Path(root), version, progress or (lambda line: None))
    batch = _frames(tables, num_sweeps)
    properties = {
        "format": layout.FORMAT,
        "version": version,
        "num_sweeps": num_sweeps,
        "tables": layout.table_stamps(version_folder(root, version)),
    }
    path = _write(batch, properties, layout.index_paths(root, version, index_dir))
    if progress:
        progress(f"{batch.num_rows:,} key frames, {path.stat().st_size / 1e6:,.0f} MB: {path}")
    return path


@dataclass(frozen=True)
class _Tables:
    """The tables; of ``files`` (sample_data) only LiDAR files and key images."""

    folder: Path
    scene: pa.Table
    log: pa.Table
    sample: pa.Table
    sensor: pa.Table
    calibration: pa.Table
    pose: pa.Table
    files: pa.Table
    category: pa.Table
    attribute: pa.Table
    visibility: pa.Table
    instance: pa.Table
    annotation: pa.Table

    @staticmethod
    def read(root: Path, version: str, progress: Progress) -> _Tables:
        def table(name: str, keep: Callable[[pa.Table], pa.Table] | None = None) -> pa.Table:
            result = read_table(paths[name], SCHEMAS[name], keep)
            progress(f"{name}: {result.num_rows:,} records")
            return result

        paths = {name: table_path(root, version, name) for name in SCHEMAS}
        sensor, calibration = table("sensor"), table("calibrated_sensor")
        return _Tables(
            folder=version_folder(root, version),
            scene=table("scene"),
            log=table("log"),
            sample=table("sample"),
            sensor=sensor,
            calibration=calibration,
            pose=table("ego_pose"),
            files=table("sample_data", _used_files(sensor, calibration)),
            category=table("category"),
            attribute=table("attribute"),
            visibility=table("visibility"),
            instance=table("instance"),
            annotation=table("sample_annotation"),
        )

    def join(self, source: str, tokens: pa.ChunkedArray, target: str, table: pa.Table) -> Rows:
        """Rows of ``table`` with these tokens; '' gives -1.

        Raises:
            DataError: if a token is not in the table.
        """
        rows = _rows_of(tokens, table)
        lost = (rows < 0) & pc.not_equal(tokens, "").to_numpy()
        if lost.any():
            token = tokens[int(np.argmax(lost))].as_py()
            raise DataError(
                f"{self.folder / source}.json refers to {target} {token}, which {target}.json does "
                "not have; the tables are of different downloads, extract them again"
            )
        return rows


def _rows_of(tokens: pa.Array | pa.ChunkedArray, table: pa.Table) -> Rows:
    found = pc.index_in(tokens, value_set=table.column("token"))
    return pc.fill_null(found, -1).to_numpy().astype(np.int64)


def _used_files(sensor: pa.Table, calibration: pa.Table) -> Callable[[pa.Table], pa.Table]:
    """A filter: all LiDAR files, images of key frames; no radar."""
    modality = _take(sensor.column("modality"), _rows_of(calibration["sensor_token"], sensor))
    camera = calibration["token"].filter(pc.equal(modality, "camera"))
    lidar = calibration["token"].filter(pc.equal(modality, "lidar"))

    def keep(files: pa.Table) -> pa.Table:
        tokens = files.column("calibrated_sensor_token")
        image = pc.and_(pc.is_in(tokens, value_set=camera), files.column("is_key_frame"))
        return files.filter(pc.or_(image, pc.is_in(tokens, value_set=lidar)))

    return keep


def _take(column: pa.ChunkedArray, rows: Rows) -> pa.Array:
    """Rows of a column; -1 gives null."""
    taken = column.take(pa.array(rows, mask=rows < 0))
    return pa.concat_arrays(taken.chunks) if taken.num_chunks != 1 else taken.chunk(0)


# ---- key frames


def _frames(tables: _Tables, num_sweeps: int) -> pa.RecordBatch:
    """One row for each key frame, in the order of scenes and of time."""
    scene = tables.join("sample", tables.sample["scene_token"], "scene", tables.scene)
    log = tables.join("scene", tables.scene["log_token"], "log", tables.log)
    time = tables.sample["timestamp"].to_numpy()
    order = np.lexsort((time, scene))
    position = np.empty(len(order), np.int64)  # sample row -> frame
    position[order] = np.arange(len(order))

    files = _Files(tables, position)
    sweeps = files.sweeps(num_sweeps)  # (F, 1 + num_sweeps)
    images, camera_starts = files.images()
    key = np.where(sweeps[:, 0] >= 0, sweeps[:, 0], files.nearest_image(time[order]))
    if (key < 0).any():
        token = tables.sample["token"][int(order[np.argmax(key < 0)])].as_py()
        raise DataError(
            f"{tables.folder}/sample_data.json has no LiDAR file and no image for sample {token}; "
            "extract the metadata archive again"
        )
    columns = {
        "token": _take(tables.sample["token"], order),
        "scene": _names(_take(tables.scene["name"], scene[order])),
        "location": _names(_take(tables.log["location"], log[scene[order]])),
        "timestamp_us": pa.array(files.time[key]),
        "pose": files.pose(key),
        "cameras": _lists(camera_starts, files.structs(images, layout.CAMERA)),
        "sweeps": _lists(
            _starts((sweeps >= 0).sum(1)), files.structs(sweeps[sweeps >= 0], layout.SWEEP)
        ),
        "boxes": _boxes(tables, position, time),
    }
    return pa.RecordBatch.from_arrays(list(columns.values()), schema=layout.SCHEMA)


def _starts(counts: NDArray) -> NDArray[np.int32]:
    return np.concatenate([[0], np.cumsum(counts)]).astype(np.int32)


def _lists(starts: NDArray[np.int32], values: pa.StructArray) -> pa.ListArray:
    return pa.ListArray.from_arrays(pa.array(starts), values)


def _names(texts: pa.Array) -> pa.DictionaryArray:
    return pc.fill_null(texts, "").dictionary_encode()


class _Files:
    """The sensor files, and which frame each belongs to."""

    def __init__(self, tables: _Tables, position: Rows) -> None:
        files = tables.files
        self.tables, self.num_frames = tables, len(position)
        self.time = files["timestamp"].to_numpy()
        self.frame = position[
            tables.join("sample_data", files["sample_token"], "sample", tables.sample)
        ]
        self.calibration_row = tables.join(
            "sample_data", files["calibrated_sensor_token"], "calibrated_sensor", tables.calibration
        )
        self.pose_row = tables.join("sample_data", files["ego_pose_token"], "ego_pose", tables.pose)
        sensor = tables.join(
            "calibrated_sensor", tables.calibration["sensor_token"], "sensor", tables.sensor
        )
        self.channel = _take(tables.sensor["channel"], sensor[self.calibration_row])
        modality = _take(tables.sensor["modality"], sensor[self.calibration_row])
        self.is_camera = pc.equal(modality, "camera").to_numpy(False)
        self.is_key = files["is_key_frame"].to_numpy()

    def sweeps(self, num_sweeps: int) -> Rows:
        """(F, 1 + num_sweeps): the key sweep of each frame and those before it, or -1."""
        previous = _rows_of(self.tables.files["prev"], self.tables.files)
        key = np.full(self.num_frames, -1)
        rows = np.flatnonzero(self.is_key & ~self.is_camera)
        # Where there are several LiDARs, LIDAR_TOP is the one: it is written last, so it stays.
        rows = rows[np.argsort(pc.equal(self.channel, "LIDAR_TOP").to_numpy(False)[rows])]
        key[self.frame[rows]] = rows
        chain = [key]
        for _ in range(num_sweeps):
            chain.append(np.where(chain[-1] >= 0, previous[chain[-1]], -1))
        return np.stack(chain, 1)

    def images(self) -> tuple[Rows, NDArray[np.int32]]:
        """The key images by frame and channel name, and where each frame's start."""
        rows = np.flatnonzero(self.is_key & self.is_camera)
        rank = pc.rank(self.channel, tiebreaker="dense").to_numpy()
        rows = rows[np.lexsort((rank[rows], self.frame[rows]))]
        return rows, _starts(np.bincount(self.frame[rows], minlength=self.num_frames))

    def nearest_image(self, time: NDArray) -> Rows:
        """(F,): each frame's image nearest to a time; stands in where there is no LiDAR."""
        rows = np.flatnonzero(self.is_key & self.is_camera)
        distance = np.abs(self.time[rows] - time[self.frame[rows]])
        rows = rows[np.argsort(-distance, kind="stable")]
        nearest = np.full(self.num_frames, -1)
        nearest[self.frame[rows]] = rows
        return nearest

    def structs(self, rows: Rows, kind: pa.StructType) -> pa.StructArray:
        """The index's record of each file."""
        files, calibration = self.tables.files, self.calibration_row[rows]
        fields = {
            "channel": lambda: _names(self.channel.take(pa.array(rows))),
            "file": lambda: _take(files["filename"], rows),
            "timestamp_us": lambda: pa.array(self.time[rows]),
            "calibration": lambda: self.calibration(calibration),
            "pose": lambda: self.pose(rows),
            "intrinsic": lambda: self.intrinsic(calibration),
            "width": lambda: _take(files["width"], rows).cast(pa.int32()),
            "height": lambda: _take(files["height"], rows).cast(pa.int32()),
        }
        return _struct(kind, [fields[field.name]() for field in kind])

    def pose(self, rows: Rows) -> pa.StructArray:
        """global_from_ego of the files."""
        path = self.tables.folder / "ego_pose.json"
        return _placement(self.tables.pose, self.pose_row[rows], path, pa.string())

    def calibration(self, rows: Rows) -> pa.StructArray:
        """ego_from_sensor of rows of calibrated_sensor."""
        path = self.tables.folder / "calibrated_sensor.json"
        return _placement(self.tables.calibration, rows, path, layout.NAME)

    def intrinsic(self, rows: Rows) -> pa.FixedSizeListArray:
        """Camera matrices of rows of calibrated_sensor, row by row."""
        path, table = self.tables.folder / "calibrated_sensor.json", self.tables.calibration
        needed, back = np.unique(rows, return_inverse=True)
        matrices = _take(table["camera_intrinsic"], needed)
        tokens = _take(table["token"], needed)
        _check_lengths(matrices, 3, tokens, path, "camera_intrinsic")
        row_tokens = tokens.take(pa.array(np.repeat(np.arange(len(needed)), 3)))
        flat = _vectors(matrices.flatten(), 3, row_tokens, path, "camera_intrinsic")
        return _fixed(flat.reshape(-1, 9)[back])


def _struct(kind: pa.StructType, arrays: list[pa.Array]) -> pa.StructArray:
    return pa.StructArray.from_arrays(arrays, fields=list(kind))


def _placement(table: pa.Table, rows: Rows, path: Path, token: pa.DataType) -> pa.StructArray:
    """Token, translation and rotation of rows of ego_pose or calibrated_sensor."""
    tokens = _take(table["token"], rows)
    translation = _vectors(_take(table["translation"], rows), 3, tokens, path, "translation")
    rotation = _vectors(_take(table["rotation"], rows), 4, tokens, path, "rotation")
    usable = np.isfinite(translation).all(1) & (np.linalg.norm(rotation, axis=1) > 0)
    if not usable.all():
        bad = tokens[int(np.argmin(usable))].as_py()
        warnings.warn(
            f"{path}: record {bad} has no valid translation or rotation; {np.sum(~usable)} sensor "
            "files use such records, and reading their frames will fail",
            stacklevel=2,
        )
    named = tokens.dictionary_encode() if pa.types.is_dictionary(token) else tokens
    kind = pa.struct({"token": token, **layout.POSE})
    return _struct(kind, [named, _fixed(translation), _fixed(rotation)])


def _check_lengths(lists: pa.Array, width: int, tokens: pa.Array, path: Path, field: str) -> None:
    wrong = pc.not_equal(pc.list_value_length(lists), width).to_numpy(False)
    if wrong.any():
        row = int(np.argmax(wrong))
        raise DataError(
            f"{path}: {field} of record {tokens[row].as_py()} has {len(lists[row])} entries "
            f"instead of {width}; correct the record"
        )


def _vectors(lists: pa.Array, width: int, tokens: pa.Array, path: Path, field: str) -> NDArray:
    """A list column as (R, width) float64."""
    _check_lengths(lists, width, tokens, path, field)
    return lists.flatten().to_numpy(False).astype(np.float64).reshape(-1, width)


def _fixed(vectors: NDArray) -> pa.FixedSizeListArray:
    flat = pa.array(np.ascontiguousarray(vectors, np.float64).ravel())
    return pa.FixedSizeListArray.from_arrays(flat, vectors.shape[1])


# ---- boxes


def _boxes(tables: _Tables, position: Rows, sample_time: NDArray) -> pa.ListArray:
    """The annotations of each frame, in the order of the table."""
    table, path = tables.annotation, tables.folder / "sample_annotation.json"
    sample = tables.join("sample_annotation", table["sample_token"], "sample", tables.sample)
    frame = position[sample]
    order = np.argsort(frame, kind="stable")
    instance = tables.join(
        "sample_annotation", table["instance_token"], "instance", tables.instance
    )
    category = tables.join(
        "instance", tables.instance["category_token"], "category", tables.category
    )
    tokens = _take(table["token"], np.arange(table.num_rows))

    def vectors(field: str, width: int) -> NDArray:
        lists = _take(table[field], np.arange(table.num_rows))
        return _vectors(lists, width, tokens, path, field)

    center = vectors("translation", 3)
    fields = [
        _fixed(center[order]),
        _fixed(vectors("size", 3)[order][:, [1, 0, 2]]),  # nuScenes: width, length, height
        pa.array(yaw_of(rotation_from_quaternion(vectors("rotation", 4)[order]))),
        _fixed(_velocity(tables, center, sample_time[sample])[order]),
        _names(_take(tables.category["name"], category[instance[order]])),
        _names(_take(tables.attribute["name"], _first_attribute(tables)[order])),
        _names(_take(tables.instance["token"], instance[order])),
        pa.array(_visibility(tables)[order]),
        _take(table["num_lidar_pts"], order).cast(pa.int32()),
        _take(table["num_radar_pts"], order).cast(pa.int32()),
    ]
    starts = _starts(np.bincount(frame, minlength=len(position)))
    return _lists(starts, _struct(layout.BOX, fields))


def _velocity(tables: _Tables, center: NDArray, time_us: NDArray) -> NDArray:
    """(M, 3) m/s by the devkit's rules: from the box before to the box after, as far as there are.

    NaN for a single box, and where too much time lies between.
    """
    table = tables.annotation
    before, after = _rows_of(table["prev"], table), _rows_of(table["next"], table)
    own = np.arange(table.num_rows)
    first, last = np.where(before >= 0, before, own), np.where(after >= 0, after, own)
    elapsed = 1e-6 * time_us[last] - 1e-6 * time_us[first]
    longest = np.where((before >= 0) & (after >= 0), 2 * _MAX_GAP_S, _MAX_GAP_S)
    known = (first != last) & (elapsed > 0) & (elapsed <= longest)
    return (center[last] - center[first]) / np.where(known, elapsed, np.nan)[:, None]


def _first_attribute(tables: _Tables) -> Rows:
    """Row of each box's attribute, or -1; nuScenes allows one."""
    lists = _take(tables.annotation["attribute_tokens"], np.arange(tables.annotation.num_rows))
    rows = tables.join(
        "sample_annotation", pa.chunked_array([lists.flatten()]), "attribute", tables.attribute
    )
    count = pc.list_value_length(lists).to_numpy(False)
    first = np.concatenate([[0], np.cumsum(count)])[:-1]
    return np.where(count > 0, np.append(rows, -1)[np.minimum(first, len(rows))], -1)


def _visibility(tables: _Tables) -> NDArray[np.int8]:
    """1..4 for each box, 0 where it is not given."""
    levels = [*tables.visibility["level"].to_pylist(), None]
    number = np.array([_LEVELS.index(v) + 1 if v in _LEVELS else 0 for v in levels], np.int8)
    rows = tables.join(
        "sample_annotation", tables.annotation["visibility_token"], "visibility", tables.visibility
    )
    return number[rows]


# ---- writing


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
