"""A bank of annotated objects: an Arrow file with a row for each, and their points, a raw array.

Both are mapped into memory; opening reads nothing but the Arrow file's footer. ``build.py`` writes
them.
"""

# pyarrow makes its compute functions when it is imported, so no type checker sees them.
# pyright: reportAttributeAccessIssue=false

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cached_property, lru_cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from ..errors import DataError
from ..nuscenes.frame_index import Column, names, numbers

FORMAT = 1  # raise it with every change to SCHEMA or to its meaning
OBJECTS, POINTS = "objects.arrow", "points.f32"
POINT_FIELDS = 5  # x, y, z along length, width, height of the box at the key time; intensity; ring

SCHEMA = pa.schema(
    {
        "token": pa.string(),  # of the sample that it was cut out of
        "instance": pa.string(),
        "category": pa.string(),
        "label": pa.int8(),
        "attribute": pa.int8(),
        "center": pa.list_(pa.float64(), 3),  # in the vehicle's frame at the key time
        "size": pa.list_(pa.float64(), 3),  # length, width, height
        "yaw": pa.float64(),
        "velocity": pa.list_(pa.float64(), 2),
        "num_radar_points": pa.int32(),
        "first_point": pa.int64(),
        "num_points": pa.list_(pa.int32()),  # by sweep, the key sweep first
    }
)


@dataclass(frozen=True)
class StoredObject:
    """One object, where it was in the frame that it was cut out of."""

    row: int
    token: str
    instance: str
    category: str
    label: int
    attribute: int
    center: NDArray[np.float64]  # (3,) in the vehicle's frame
    size: NDArray[np.float64]  # (3,) length, width, height
    yaw: float
    velocity: NDArray[np.float64]  # (2,) m/s, NaN if unknown
    num_radar_points: int
    points: tuple[NDArray[np.float32], ...]  # by sweep (P, 5), see POINT_FIELDS

    @property
    def columns(self) -> NDArray[np.float64]:
        """(7,) x, y, z, length, width, height, yaw."""
        return np.concatenate([self.center, self.size, [self.yaw]])


class ObjectBank:
    """An open bank.

    Args:
        folder: where it lies.

    Raises:
        DataError: if there is none, or it cannot be read.
    """

    def __init__(self, folder: Path | str) -> None:
        self.folder = Path(folder)
        try:
            batches = pa.ipc.open_file(pa.memory_map(str(self.folder / OBJECTS)))
            self.properties: dict[str, Any] = json.loads(batches.schema.metadata[b"bevstack"])
            self._batch = batches.get_batch(0)
            size = (self.folder / POINTS).stat().st_size
        except (pa.ArrowException, OSError, KeyError, TypeError, ValueError) as error:
            raise DataError(
                f"{self.folder} holds no object bank that can be read ({error}); remove the "
                "folder, and training builds it again"
            ) from error
        count = self.properties.get("num_points", -1)
        if self.properties.get("format") != FORMAT or size != count * POINT_FIELDS * 4:
            raise DataError(
                f"the object bank {self.folder} is of another format or cut off; remove the "
                "folder, and training builds it again"
            )
        shape = (count, POINT_FIELDS)
        empty = np.zeros(shape, np.float32)
        self._points = np.memmap(self.folder / POINTS, "<f4", "r", shape=shape) if count else empty

    def __len__(self) -> int:
        return self._batch.num_rows

    def __reduce__(self):
        """A process that gets a pickled bank maps the files again."""
        return ObjectBank, (self.folder,)

    @cached_property
    def tokens(self) -> tuple[str, ...]:
        """The sample that each object is from."""
        return names(self._batch.column("token"), slice(0, len(self)))

    @cached_property
    def label(self) -> NDArray[np.int8]:
        """(M,) the class of each object."""
        return numbers(self._batch.column("label"), slice(0, len(self)))

    @cached_property
    def _num_points(self) -> Column:
        return Column(self._batch.column("num_points"))

    def __getitem__(self, row: int) -> StoredObject:
        """The object of a row; its points stay on the disk until they are used."""
        here = slice(row, row + 1)

        def number(name: str) -> NDArray:
            return np.array(numbers(self._batch.column(name), here)[0])

        first = int(number("first_point"))
        counts = numbers(self._num_points.rows, self._num_points.span(row))
        ends = first + np.cumsum([0, *counts])
        return StoredObject(
            row=row,
            token=self.tokens[row],
            instance=names(self._batch.column("instance"), here)[0],
            category=names(self._batch.column("category"), here)[0],
            label=int(self.label[row]),
            attribute=int(number("attribute")),
            center=number("center"),
            size=number("size"),
            yaw=float(number("yaw")),
            velocity=number("velocity"),
            num_radar_points=int(number("num_radar_points")),
            points=tuple(self._points[a:b] for a, b in pairwise(ends)),
        )


@lru_cache(maxsize=4)
def open_bank(folder: Path) -> ObjectBank:
    """The bank of a folder, opened once per process."""
    return ObjectBank(folder)
