"""The columns of the index about sensor files: images and LiDAR sweeps."""

# pyarrow makes its compute functions when it is imported, so no type checker sees them.
# pyright: reportAttributeAccessIssue=false

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from . import frame_index as layout
from .joins import (
    Rows,
    Tables,
    check_lengths,
    name_column,
    rows_of,
    starts_of,
    struct_column,
    take,
    vector_column,
    vectors,
)


class SensorFiles:
    """The sensor files, and which frame each belongs to."""

    def __init__(self, tables: Tables, position: Rows) -> None:
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
        self.channel = take(tables.sensor["channel"], sensor[self.calibration_row])
        modality = take(tables.sensor["modality"], sensor[self.calibration_row])
        self.is_camera = pc.equal(modality, "camera").to_numpy(False)
        self.is_key = files["is_key_frame"].to_numpy()

    def sweeps(self, previous_sweeps: int) -> Rows:
        """(F, 1 + previous_sweeps): the key sweep of each frame and those before it, or -1."""
        previous = rows_of(self.tables.files["prev"], self.tables.files)
        key = np.full(self.num_frames, -1)
        rows = np.flatnonzero(self.is_key & ~self.is_camera)
        # Where there are several LiDARs, LIDAR_TOP is the one: it is written last, so it stays.
        rows = rows[np.argsort(pc.equal(self.channel, "LIDAR_TOP").to_numpy(False)[rows])]
        key[self.frame[rows]] = rows
        chain = [key]
        for _ in range(previous_sweeps):
            chain.append(np.where(chain[-1] >= 0, previous[chain[-1]], -1))
        return np.stack(chain, 1)

    def images(self) -> tuple[Rows, NDArray[np.int32]]:
        """The key images by frame and channel name, and where each frame's start."""
        rows = np.flatnonzero(self.is_key & self.is_camera)
        rank = pc.rank(self.channel, tiebreaker="dense").to_numpy()
        rows = rows[np.lexsort((rank[rows], self.frame[rows]))]
        return rows, starts_of(np.bincount(self.frame[rows], minlength=self.num_frames))

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
            "channel": lambda: name_column(self.channel.take(pa.array(rows))),
            "file": lambda: take(files["filename"], rows),
            "timestamp_us": lambda: pa.array(self.time[rows]),
            "calibration": lambda: self.calibration(calibration),
            "pose": lambda: self.pose(rows),
            "intrinsic": lambda: self.intrinsic(calibration),
            "width": lambda: take(files["width"], rows).cast(pa.int32()),
            "height": lambda: take(files["height"], rows).cast(pa.int32()),
        }
        return struct_column(kind, [fields[field.name]() for field in kind])

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
        matrices = take(table["camera_intrinsic"], needed)
        tokens = take(table["token"], needed)
        check_lengths(matrices, 3, tokens, path, "camera_intrinsic")
        row_tokens = tokens.take(pa.array(np.repeat(np.arange(len(needed)), 3)))
        flat = vectors(matrices.flatten(), 3, row_tokens, path, "camera_intrinsic")
        return vector_column(flat.reshape(-1, 9)[back])


def _placement(table: pa.Table, rows: Rows, path: Path, token: pa.DataType) -> pa.StructArray:
    """Token, translation and rotation of rows of ego_pose or calibrated_sensor."""
    tokens = take(table["token"], rows)
    translation = vectors(take(table["translation"], rows), 3, tokens, path, "translation")
    rotation = vectors(take(table["rotation"], rows), 4, tokens, path, "rotation")
    usable = layout.is_rigid(translation, rotation)
    if not usable.all():
        bad = tokens[int(np.argmin(usable))].as_py()
        warnings.warn(
            f"{path}: record {bad} has no valid translation or rotation; {np.sum(~usable)} sensor "
            "files use such records, and reading their frames will fail",
            stacklevel=2,
        )
    named = tokens.dictionary_encode() if pa.types.is_dictionary(token) else tokens
    kind = pa.struct({"token": token, **layout.POSE})
    return struct_column(kind, [named, vector_column(translation), vector_column(rotation)])
