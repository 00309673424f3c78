"""Cut annotated objects out of the frames of a split and write their bank."""

from __future__ import annotations

import json
import os
import shutil
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from ...kernels.numba_points_in_boxes import points_in_boxes
from ..frame import Annotations, Frame
from ..geometry import apply, inverse
from ..nuscenes.classes import DETECTION_CLASSES
from ..nuscenes.frame_index import table_stamps
from ..nuscenes.reader import NuScenesReader
from ..nuscenes.tables import version_folder
from .bank import FORMAT, OBJECTS, POINTS, SCHEMA, ObjectBank

Progress = Callable[[str], None]


@dataclass(frozen=True)
class BankOptions:
    """Which objects a bank holds.

    Args:
        num_sweeps: sweeps whose points are kept, the key sweep included.
        min_points: objects with fewer points in the key sweep are left out; 5 as in published
            training.
        max_per_class: of a class with more objects, every so-manieth is taken.
    """

    num_sweeps: int = 10
    min_points: int = 5
    max_per_class: int = 20_000


def ensure_bank(
    reader: NuScenesReader, options: BankOptions, folder: Path, progress: Progress | None = None
) -> ObjectBank:
    """The bank in a folder, built anew if it is missing or of other tables or options."""
    wanted = _properties(reader, options)
    try:
        bank = ObjectBank(folder)
        if {name: bank.properties.get(name) for name in wanted} == wanted:
            return bank
    except ValueError:
        pass
    return build_bank(reader, options, folder, progress)


def build_bank(
    reader: NuScenesReader, options: BankOptions, folder: Path, progress: Progress | None = None
) -> ObjectBank:
    """Read the frames once, on all cores, and write a bank; all of it or nothing.

    Args:
        reader: the frames, with as many sweeps as ``options`` asks for.
        options: what to keep.
        folder: where to write; replaced if it exists.
        progress: is told now and then how far it is.

    Raises:
        DataError: if a sensor file cannot be used.
    """
    chosen = chosen_objects(reader, options)
    frames = [i for i, rows in enumerate(chosen) if len(rows)]
    partial = folder.with_name(f"{folder.name}.{os.getpid()}")
    partial.mkdir(parents=True)
    try:
        rows: list[dict[str, Any]] = []
        num_points = 0
        with (partial / POINTS).open("wb") as file:
            cut = _in_threads(lambda i: cut_objects(reader[i], chosen[i], options), frames)
            for done, objects in enumerate(cut, 1):
                for row, points in objects:
                    rows.append({**row, "first_point": num_points})
                    file.write(np.concatenate(points).astype("<f4").tobytes())
                    num_points += sum(map(len, points))
                if progress and (done % 500 == 0 or done == len(frames)):
                    progress(
                        f"object bank: {done:,} of {len(frames):,} frames, {len(rows):,} objects"
                    )
        properties = {**_properties(reader, options), "num_points": num_points}
        schema = SCHEMA.with_metadata({"bevstack": json.dumps(properties)})
        with pa.OSFile(str(partial / OBJECTS), "wb") as sink, pa.ipc.new_file(sink, schema) as out:
            out.write_batch(pa.RecordBatch.from_pylist(rows, schema=schema))
        shutil.rmtree(folder, ignore_errors=True)
        partial.replace(folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return ObjectBank(folder)


def chosen_objects(reader: NuScenesReader, options: BankOptions) -> list[NDArray[np.int64]]:
    """By frame, the rows of the annotations that the bank shall hold; no sensor file is read."""
    found: list[list[tuple[int, int]]] = [[] for _ in DETECTION_CLASSES]
    for i in range(len(reader)):
        truth = reader.global_annotations(i)
        if truth is not None:
            enough = truth.num_lidar_points >= options.min_points
            for row in np.flatnonzero(enough & (truth.boxes.label >= 0)):
                found[truth.boxes.label[row]].append((i, int(row)))
    chosen: list[list[int]] = [[] for _ in range(len(reader))]
    for objects in found:
        number = min(len(objects), options.max_per_class)
        for at in np.linspace(0, len(objects) - 1, number).round().astype(np.int64):
            frame, row = objects[at]
            chosen[frame].append(row)
    return [np.array(sorted(rows), np.int64) for rows in chosen]


def cut_objects(
    frame: Frame, rows: NDArray[np.int64], options: BankOptions
) -> list[tuple[dict[str, Any], list[NDArray[np.float32]]]]:
    """Row and points by sweep of some of a frame's objects.

    From each sweep those points are taken that lay in the object at the sweep's time, as far as its
    velocity tells; a moving object keeps its trail.
    """
    if frame.annotations is None or not frame.sweeps:
        return []
    truth = frame.annotations[rows]
    parts: list[list[NDArray]] = [[] for _ in rows]
    key_from_global = inverse(frame.global_from_ego)
    for sweep in frame.sweeps[: options.num_sweeps]:
        points = sweep.load()
        key_from_lidar = key_from_global @ sweep.global_from_ego @ sweep.ego_from_lidar
        position = apply(key_from_lidar, points[:, :3].astype(np.float64))
        lag = (frame.timestamp_us - sweep.timestamp_us) * 1e-6
        owner = points_in_boxes(position, box_columns(truth, lag), num_threads=1)
        for m, part in enumerate(parts):
            inside = owner == m
            local = to_box_axes(position[inside], truth.boxes.center[m], truth.boxes.yaw[m])
            part.append(np.hstack([local, points[inside, 3:5]]).astype(np.float32))
    kept = [m for m, part in enumerate(parts) if len(part[0]) >= options.min_points]
    return [(_row(frame, truth, m, parts[m]), parts[m]) for m in kept]


def box_columns(truth: Annotations, lag: float) -> NDArray[np.float64]:
    """(M, 7) the boxes where they were ``lag`` seconds before the key time."""
    boxes = truth.boxes
    center = boxes.center.copy()
    center[:, :2] -= lag * np.nan_to_num(boxes.velocity)
    return np.hstack([center, boxes.size, boxes.yaw[:, None]])


def to_box_axes(points: NDArray, center: NDArray, yaw: float) -> NDArray[np.float64]:
    """(P, 3) points along length, width and height of a box, from its middle."""
    cos, sin = np.cos(yaw), np.sin(yaw)
    turn = np.array([[cos, -sin, 0.0], [sin, cos, 0.0], [0.0, 0.0, 1.0]])
    return np.asarray((points - center) @ turn, np.float64)


def _row(frame: Frame, truth: Annotations, m: int, points: Sequence[NDArray]) -> dict[str, Any]:
    boxes = truth.boxes
    return {
        "token": frame.token,
        "instance": truth.instance[m],
        "category": truth.category[m],
        "label": int(boxes.label[m]),
        "attribute": int(truth.attribute[m]),
        "center": boxes.center[m].tolist(),
        "size": boxes.size[m].tolist(),
        "yaw": float(boxes.yaw[m]),
        "velocity": boxes.velocity[m].tolist(),
        "num_radar_points": int(truth.num_radar_points[m]),
        "num_points": [len(part) for part in points],
    }


def _properties(reader: NuScenesReader, options: BankOptions) -> dict[str, Any]:
    return {
        "format": FORMAT,
        "split": reader.split,
        "num_sweeps": options.num_sweeps,
        "min_points": options.min_points,
        "max_per_class": options.max_per_class,
        "tables": table_stamps(version_folder(reader.root, reader.version)),
    }


def _in_threads(call: Callable[[int], Any], items: Sequence[int]) -> Iterator[Any]:
    """Results in order, a few ahead; reading and cutting leave Python's lock alone."""
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        rest = iter(items)
        ahead = islice(rest, 4 * (os.cpu_count() or 1))
        waiting = deque(pool.submit(call, item) for item in ahead)
        while waiting:
            yield waiting.popleft().result()
            waiting.extend(pool.submit(call, item) for item in islice(rest, 1))
