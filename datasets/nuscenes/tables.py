"""Read nuScenes' JSON tables into Arrow tables: fast, and only the fields that are used.

``sample_data.json`` has 2.6 million records. As Python objects the tables take gigabytes, so files
are read in blocks: each is rewritten to one record a line, which Arrow's own parser takes.
"""

# pyarrow makes its compute functions when it is imported, so no type checker sees them.
# pyright: reportAttributeAccessIssue=false

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.json as pa_json

from ..errors import DataError

_BLOCK_BYTES = 16 << 20
_BETWEEN_RECORDS = re.compile(rb"\}\s*,\s*\{")
_SPACES = bytes.maketrans(b"\n\r", b"  ")  # JSON strings hold no raw line break: all are layout

_TEXT, _INT, _VECTOR = pa.string(), pa.int64(), pa.list_(pa.float64())
_POSE = {"translation": _VECTOR, "rotation": _VECTOR}

# The tables that are read, and the fields of each that are used.
SCHEMAS: dict[str, pa.Schema] = {
    "scene": pa.schema({"token": _TEXT, "name": _TEXT, "log_token": _TEXT}),
    "log": pa.schema({"token": _TEXT, "location": _TEXT}),
    "sample": pa.schema({"token": _TEXT, "timestamp": _INT, "scene_token": _TEXT}),
    "sensor": pa.schema({"token": _TEXT, "channel": _TEXT, "modality": _TEXT}),
    "calibrated_sensor": pa.schema(
        {"token": _TEXT, "sensor_token": _TEXT, **_POSE, "camera_intrinsic": pa.list_(_VECTOR)}
    ),
    "ego_pose": pa.schema({"token": _TEXT, **_POSE}),
    "sample_data": pa.schema(
        {
            "token": _TEXT,
            "sample_token": _TEXT,
            "ego_pose_token": _TEXT,
            "calibrated_sensor_token": _TEXT,
            "timestamp": _INT,
            "is_key_frame": pa.bool_(),
            "height": _INT,
            "width": _INT,
            "filename": _TEXT,
            "prev": _TEXT,
        }
    ),
    "category": pa.schema({"token": _TEXT, "name": _TEXT}),
    "attribute": pa.schema({"token": _TEXT, "name": _TEXT}),
    "visibility": pa.schema({"token": _TEXT, "level": _TEXT}),
    "instance": pa.schema({"token": _TEXT, "category_token": _TEXT}),
    "sample_annotation": pa.schema(
        {
            "token": _TEXT,
            "sample_token": _TEXT,
            "instance_token": _TEXT,
            "visibility_token": _TEXT,
            "attribute_tokens": pa.list_(_TEXT),
            **_POSE,
            "size": _VECTOR,
            "num_lidar_pts": _INT,
            "num_radar_pts": _INT,
            "prev": _TEXT,
            "next": _TEXT,
        }
    ),
}


class _UnusualLayout(Exception):
    """The fast path does not fit this file; Python's own parser decides."""


def version_folder(root: Path | str, version: str) -> Path:
    """The folder with a version's tables.

    Raises:
        DataError: if ``root`` is no nuScenes folder or has no such version.
    """
    root = Path(root)
    versions = sorted(path.parent.name for path in root.glob("*/sample.json"))
    if version in versions or (root / version).is_dir():
        return root / version
    if not versions:
        raise DataError(
            f"{root} is not a nuScenes folder: none of its folders holds sample.json; give the "
            f"folder that contains {version}/, samples/ and maps/"
        )
    raise DataError(f"{root} has no version {version}, but: {', '.join(versions)}; use one of them")


def table_path(root: Path | str, version: str, name: str) -> Path:
    """Where a table's JSON file is.

    Raises:
        DataError: if the folder, the version or the file does not exist.
    """
    path = version_folder(root, version) / f"{name}.json"
    if not path.is_file():
        raise DataError(f"{path} is missing; extract nuScenes' metadata archive into {root} again")
    return path


def read_table(
    path: Path, schema: pa.Schema, keep: Callable[[pa.Table], pa.Table] | None = None
) -> pa.Table:
    """The records of one table, with the fields of ``schema``.

    Args:
        path: a JSON file holding one list of records.
        schema: the fields to read; others are skipped.
        keep: is applied to each block of records and gives those to keep.

    Raises:
        DataError: if the file is broken or a record lacks a field.
    """
    keep = keep or (lambda table: table)
    try:
        blocks = [keep(_complete(block, path)) for block in _parsed_blocks(path, schema)]
    except (_UnusualLayout, pa.ArrowInvalid):
        blocks = [keep(_complete(_parse_slowly(path, schema), path))]
    return pa.concat_tables([schema.empty_table(), *blocks]).combine_chunks()


def _complete(table: pa.Table, path: Path) -> pa.Table:
    for name in table.column_names:
        column = table.column(name)
        if column.null_count:
            row = pc.index(pc.is_null(column), True).as_py()
            record = table.column("token")[row].as_py() if name != "token" else "without a token"
            raise DataError(
                f"{path}: record {record} has no {name}; the table is incomplete, extract it again"
            )
    return table


def _parsed_blocks(path: Path, schema: pa.Schema) -> Iterator[pa.Table]:
    """Parse in a thread (Arrow holds no GIL) while the next block is read and rewritten."""
    with ThreadPoolExecutor(1) as pool:
        pending: list[Future[pa.Table]] = []
        for block in _record_blocks(path):
            pending.append(pool.submit(_parse, _BETWEEN_RECORDS.sub(b"}\n{", block), schema))
            if len(pending) > 2:  # bounds the memory
                yield pending.pop(0).result()
        for future in pending:
            yield future.result()


def _record_blocks(path: Path) -> Iterator[bytes]:
    """Pieces of the list, each of whole records: ``{...}, {...}``, without line breaks."""
    rest, started = b"", False
    with path.open("rb") as file:
        while chunk := file.read(_BLOCK_BYTES):
            rest += chunk.translate(_SPACES)
            if not started:
                rest, started = _without_bracket(rest), True
            block, brace, start_of_next = rest.rpartition(b"{")
            block = block.rstrip()
            if block.endswith(b","):
                yield block[:-1]
                rest = brace + start_of_next
    rest = rest.rstrip()
    if not rest.endswith(b"]"):
        raise _UnusualLayout
    if last := rest[:-1].rstrip():
        yield last


def _without_bracket(text: bytes) -> bytes:
    text = text.lstrip()
    if not text.startswith(b"["):
        raise _UnusualLayout
    return text[1:].lstrip()


def _parse(lines: bytes, schema: pa.Schema) -> pa.Table:
    # A separator inside a string would be taken for one between records; the halves are then not
    # JSON, so this raises and never gives wrong records.
    return pa_json.read_json(
        pa.BufferReader(lines),
        read_options=pa_json.ReadOptions(block_size=max(len(lines) // 4, 1 << 20)),
        parse_options=pa_json.ParseOptions(
            explicit_schema=schema, unexpected_field_behavior="ignore"
        ),
    ).select(schema.names)


def _parse_slowly(path: Path, schema: pa.Schema) -> pa.Table:
    try:
        records = json.loads(path.read_bytes())
        rows = [{name: record.get(name) for name in schema.names} for record in records]
        return pa.Table.from_pylist(rows, schema)
    except (ValueError, AttributeError, TypeError, pa.ArrowException) as error:
        raise DataError(
            f"{path} is not a table of nuScenes ({error}); extract the metadata archive again"
        ) from error
