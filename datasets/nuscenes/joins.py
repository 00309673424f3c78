"""The tables of a version, and how columns of the index are made from them.

Tables are joined by Arrow's hash look-ups on their token columns: a join is an array of row
numbers, with no Python object per record.
"""

# pyarrow makes its compute functions when it is imported, so no type checker sees them.
# pyright: reportAttributeAccessIssue=false

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from ..errors import DataError
from .tables import SCHEMAS, read_table, table_path, version_folder

Progress = Callable[[str], None]
Rows = NDArray[np.int64]  # row numbers in a table; -1 for none


@dataclass(frozen=True)
class Tables:
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
    def read(root: Path, version: str, progress: Progress) -> Tables:
        def table(name: str, keep: Callable[[pa.Table], pa.Table] | None = None) -> pa.Table:
            result = read_table(paths[name], SCHEMAS[name], keep)
            progress(f"{name}: {result.num_rows:,} records")
            return result

        paths = {name: table_path(root, version, name) for name in SCHEMAS}
        sensor, calibration = table("sensor"), table("calibrated_sensor")
        return Tables(
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
        rows = rows_of(tokens, table)
        lost = (rows < 0) & pc.not_equal(tokens, "").to_numpy()
        if lost.any():
            token = tokens[int(np.argmax(lost))].as_py()
            raise DataError(
                f"{self.folder / source}.json refers to {target} {token}, which {target}.json does "
                "not have; the tables are of different downloads, extract them again"
            )
        return rows


def rows_of(tokens: pa.Array | pa.ChunkedArray, table: pa.Table) -> Rows:
    found = pc.index_in(tokens, value_set=table.column("token"))
    return pc.fill_null(found, -1).to_numpy().astype(np.int64)


def _used_files(sensor: pa.Table, calibration: pa.Table) -> Callable[[pa.Table], pa.Table]:
    """A filter: all LiDAR files, images of key frames; no radar."""
    modality = take(sensor.column("modality"), rows_of(calibration["sensor_token"], sensor))
    camera = calibration["token"].filter(pc.equal(modality, "camera"))
    lidar = calibration["token"].filter(pc.equal(modality, "lidar"))

    def keep(files: pa.Table) -> pa.Table:
        tokens = files.column("calibrated_sensor_token")
        image = pc.and_(pc.is_in(tokens, value_set=camera), files.column("is_key_frame"))
        return files.filter(pc.or_(image, pc.is_in(tokens, value_set=lidar)))

    return keep


def take(column: pa.ChunkedArray, rows: Rows) -> pa.Array:
    """Rows of a column; -1 gives null."""
    taken = column.take(pa.array(rows, mask=rows < 0))
    return pa.concat_arrays(taken.chunks) if taken.num_chunks != 1 else taken.chunk(0)


def starts_of(counts: NDArray) -> NDArray[np.int32]:
    return np.concatenate([[0], np.cumsum(counts)]).astype(np.int32)


def list_column(starts: NDArray[np.int32], values: pa.StructArray) -> pa.ListArray:
    return pa.ListArray.from_arrays(pa.array(starts), values)


def name_column(texts: pa.Array) -> pa.DictionaryArray:
    return pc.fill_null(texts, "").dictionary_encode()


def struct_column(kind: pa.StructType, arrays: list[pa.Array]) -> pa.StructArray:
    return pa.StructArray.from_arrays(arrays, fields=list(kind))


def check_lengths(lists: pa.Array, width: int, tokens: pa.Array, path: Path, field: str) -> None:
    wrong = pc.not_equal(pc.list_value_length(lists), width).to_numpy(False)
    if wrong.any():
        row = int(np.argmax(wrong))
        raise DataError(
            f"{path}: {field} of record {tokens[row].as_py()} has {len(lists[row])} entries "
            f"instead of {width}; correct the record"
        )


def vectors(lists: pa.Array, width: int, tokens: pa.Array, path: Path, field: str) -> NDArray:
    """A list column as (R, width) float64."""
    check_lengths(lists, width, tokens, path, field)
    return lists.flatten().to_numpy(False).astype(np.float64).reshape(-1, width)


def vector_column(vectors: NDArray) -> pa.FixedSizeListArray:
    flat = pa.array(np.ascontiguousarray(vectors, np.float64).ravel())
    return pa.FixedSizeListArray.from_arrays(flat, vectors.shape[1])
