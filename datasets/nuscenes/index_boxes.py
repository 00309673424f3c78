"""The column of the index about annotated boxes."""

# pyarrow makes its compute functions when it is imported, so no type checker sees them.
# pyright: reportAttributeAccessIssue=false

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from ..geometry import rotation_from_quaternion, yaw_of
from . import frame_index as layout
from .joins import (
    Rows,
    Tables,
    list_column,
    name_column,
    rows_of,
    starts_of,
    struct_column,
    take,
    vector_column,
    vectors,
)

_LEVELS = ("v0-40", "v40-60", "v60-80", "v80-100")
_MAX_GAP_S = 1.5  # between the key frames that a velocity is taken from; the devkit's rule


def box_column(tables: Tables, position: Rows, sample_time: NDArray) -> pa.ListArray:
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
    tokens = take(table["token"], np.arange(table.num_rows))

    def column(field: str, width: int) -> NDArray:
        lists = take(table[field], np.arange(table.num_rows))
        return vectors(lists, width, tokens, path, field)

    center = column("translation", 3)
    fields = [
        vector_column(center[order]),
        vector_column(column("size", 3)[order][:, [1, 0, 2]]),  # nuScenes: width, length, height
        pa.array(yaw_of(rotation_from_quaternion(column("rotation", 4)[order]))),
        vector_column(_velocity(tables, center, sample_time[sample])[order]),
        name_column(take(tables.category["name"], category[instance[order]])),
        name_column(take(tables.attribute["name"], _first_attribute(tables)[order])),
        name_column(take(tables.instance["token"], instance[order])),
        pa.array(_visibility(tables)[order]),
        take(table["num_lidar_pts"], order).cast(pa.int32()),
        take(table["num_radar_pts"], order).cast(pa.int32()),
    ]
    starts = starts_of(np.bincount(frame, minlength=len(position)))
    return list_column(starts, struct_column(layout.BOX, fields))


def _velocity(tables: Tables, center: NDArray, time_us: NDArray) -> NDArray:
    """(M, 3) m/s by the devkit's rules: from the box before to the box after, as far as there are.

    NaN for a single box, and where too much time lies between.
    """
    table = tables.annotation
    before, after = rows_of(table["prev"], table), rows_of(table["next"], table)
    own = np.arange(table.num_rows)
    first, last = np.where(before >= 0, before, own), np.where(after >= 0, after, own)
    elapsed = 1e-6 * time_us[last] - 1e-6 * time_us[first]
    longest = np.where((before >= 0) & (after >= 0), 2 * _MAX_GAP_S, _MAX_GAP_S)
    known = (first != last) & (elapsed > 0) & (elapsed <= longest)
    return (center[last] - center[first]) / np.where(known, elapsed, np.nan)[:, None]


def _first_attribute(tables: Tables) -> Rows:
    """Row of each box's attribute, or -1; nuScenes allows one."""
    lists = take(tables.annotation["attribute_tokens"], np.arange(tables.annotation.num_rows))
    rows = tables.join(
        "sample_annotation", pa.chunked_array([lists.flatten()]), "attribute", tables.attribute
    )
    count = pc.list_value_length(lists).to_numpy(False)
    first = np.concatenate([[0], np.cumsum(count)])[:-1]
    return np.where(count > 0, np.append(rows, -1)[np.minimum(first, len(rows))], -1)


def _visibility(tables: Tables) -> NDArray[np.int8]:
    """1..4 for each box, 0 where it is not given."""
    levels = [*tables.visibility["level"].to_pylist(), None]
    number = np.array([_LEVELS.index(v) + 1 if v in _LEVELS else 0 for v in levels], np.int8)
    rows = tables.join(
        "sample_annotation", tables.annotation["visibility_token"], "visibility", tables.visibility
    )
    return number[rows]
