"""Write the labels of a dataset's key frames, scene by scene."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from functools import partial
from multiprocessing import get_context
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ...kernels.voxel_grid import OCC3D_GRID
from ..errors import DataError
from ..frame import Frame
from ..nuscenes.lidarseg import PointClasses
from ..nuscenes.maps import MapRasterizer
from ..nuscenes.reader import NuScenesReader
from ..occupancy import OccupancyLabels
from .accumulate import accumulate
from .frame_labels import label_frame

RECORD = "made_from.json"  # in the folder: what its labels were made from
_FORMAT = 1  # raise it when the same input gives other labels


@dataclass(frozen=True)
class LabelJob:
    """What labels are made from.

    Args:
        root: an indexed nuScenes folder.
        out: folder of the labels.
        version: its tables' folder.
        split: frames of this split; None for all.
        lidarseg: use the classes of ``lidarseg`` where the dataset has them.
        index_dir: where the index is, if not in its usual place.
    """

    root: Path
    out: Path
    version: str
    split: str | None = None
    lidarseg: bool = True
    index_dir: Path | None = None


@dataclass(frozen=True)
class Outcome:
    """What became of the frames."""

    written: int
    present: int  # there before
    failed: dict[str, str]  # scene -> why it has no labels


def write_labels(
    job: LabelJob,
    scenes: Sequence[str] | None = None,
    workers: int = 1,
    progress: Callable[[int, int], None] | None = None,
) -> Outcome:
    """Write ``<out>/<scene>/<token>/labels.npz`` for every key frame, in Occ3D's layout.

    Frames that are there already are left alone. A scene that cannot be read is named in the
    outcome and the others go on. The same input gives the same bytes for any number of workers.

    Args:
        job: what they are made from.
        scenes: names of scenes; None for all of the split.
        workers: processes that share the scenes.
        progress: is told the frames done and all.

    Raises:
        DataError: if the dataset has no annotations, there is no such scene, or ``out`` holds other
            labels.
    """
    reader = _open(job)
    if not len(reader) or reader.global_annotations(0) is None:
        raise DataError(
            f"{job.root} {job.version} has no annotations here; moving objects would leave trails "
            "in the labels: choose an annotated split"
        )
    wanted = _rows_by_scene(reader, scenes)
    _check_folder(job)
    tokens = reader.tokens
    missing = {
        scene: [row for row in rows if not _path(job, scene, tokens[row]).is_file()]
        for scene, rows in wanted.items()
    }
    total = sum(map(len, wanted.values()))
    present = total - sum(map(len, missing.values()))
    done, failed = present, {}
    todo = {scene: rows for scene, rows in missing.items() if rows}
    report = progress or (lambda done, total: None)
    report(done, total)
    for scene, count, error in _labelled(job, todo, wanted, workers):
        done += count
        if error is not None:
            failed[scene] = error
        report(done, total)
    return Outcome(done - present, present, failed)


def _open(job: LabelJob) -> NuScenesReader:
    reader = NuScenesReader(job.root, job.version, job.split, 0, index_dir=job.index_dir)
    # Every sweep that the index knows.
    return NuScenesReader(
        job.root, job.version, job.split, reader.index.previous_sweeps, index_dir=job.index_dir
    )


def _rows_by_scene(reader: NuScenesReader, scenes: Sequence[str] | None) -> dict[str, list[int]]:
    numbers = reader.scene_numbers()
    firsts = np.unique(numbers, return_index=True)[1]
    rows = {
        reader[int(i)].scene: np.flatnonzero(numbers == numbers[i]).tolist() for i in sorted(firsts)
    }
    unknown = [scene for scene in scenes or () if scene not in rows]
    if unknown:
        known = ", ".join(list(rows)[:20])
        raise DataError(f"there is no scene {unknown[0]} here; some that there are: {known}")
    return rows if scenes is None else {scene: rows[scene] for scene in scenes}


def _check_folder(job: LabelJob) -> None:
    """Labels of different origins must not end up in one folder."""
    wanted = {
        "format": _FORMAT,
        "version": job.version,
        "lidarseg": job.lidarseg and PointClasses.open(job.root, job.version) is not None,
        "map": MapRasterizer.is_available(job.root),
    }
    path = job.out / RECORD
    if path.is_file():
        found = json.loads(path.read_text(encoding="utf-8"))
        if found != wanted:
            raise DataError(
                f"the labels in {job.out} were made from {found}, not {wanted}; choose another "
                "--out, or remove them"
            )
        return
    if job.out.is_dir() and any(job.out.iterdir()):
        raise DataError(
            f"{job.out} holds files of another origin, published labels perhaps; choose another "
            "--out and train with --data.occupancy"
        )
    job.out.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(wanted, indent=2) + "\n", encoding="utf-8")


def _path(job: LabelJob, scene: str, token: str) -> Path:
    return job.out / scene / token / "labels.npz"


Step = tuple[str, int, str | None]  # scene, frames written, why it ended early


def _labelled(
    job: LabelJob, todo: dict[str, list[int]], wanted: dict[str, list[int]], workers: int
) -> Iterator[Step]:
    if workers <= 1 or len(todo) <= 1:
        worker = _Worker(job)
        for scene, rows in todo.items():
            yield from worker.label_scene(scene, wanted[scene], rows)
        return
    # Spawned, not forked: threads of this process do not survive a fork.
    context = get_context("spawn")
    with ProcessPoolExecutor(min(workers, len(todo)), context, _start, (job,)) as pool:
        futures = [pool.submit(_scene, scene, wanted[scene], rows) for scene, rows in todo.items()]
        for future in as_completed(futures):
            yield from future.result()


_worker: _Worker | None = None  # of a process of the pool


def _start(job: LabelJob) -> None:
    global _worker
    _worker = _Worker(job)


def _scene(scene: str, rows: list[int], missing: list[int]) -> list[Step]:
    assert _worker is not None
    return list(_worker.label_scene(scene, rows, missing))


class _Worker:
    """Labels scenes one by one."""

    def __init__(self, job: LabelJob) -> None:
        self.job, self.reader = job, _open(job)
        self.classes = PointClasses.open(job.root, job.version) if job.lidarseg else None
        self.map = MapRasterizer(job.root) if MapRasterizer.is_available(job.root) else None

    def label_scene(self, scene: str, rows: list[int], missing: list[int]) -> Iterator[Step]:
        """Label the missing ones of a scene's frames."""
        try:
            frames = [self.reader[row] for row in rows]
            annotations = [self.reader.global_annotations(row) for row in rows]
            labels = partial(self._point_classes, rows) if self.classes else None
            cloud = accumulate(frames, [a for a in annotations if a is not None], labels)
            for row in missing:
                frame = frames[rows.index(row)]
                made = label_frame(cloud, frame, OCC3D_GRID, self._masks(frame))
                _write(_path(self.job, scene, frame.token), made)
                yield scene, 1, None
        except DataError as error:
            yield scene, 0, str(error)

    def _point_classes(
        self, rows: list[int], key: int, num_points: int
    ) -> NDArray[np.uint8] | None:
        assert self.classes is not None
        return self.classes.of(self.reader.key_frame(rows[key]).lidar_token, num_points)

    def _masks(self, frame: Frame) -> NDArray[np.bool_] | None:
        if self.map is None:
            return None
        return self.map.masks(frame.location, frame.global_from_ego, OCC3D_GRID.bev)


def _write(path: Path, labels: OccupancyLabels) -> None:
    """The file appears whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial_path = path.with_name(f"{path.name}.{os.getpid()}.partial")
    with partial_path.open("wb") as file:
        np.savez_compressed(file, semantics=labels.semantics, mask_lidar=labels.mask_lidar,
                            mask_camera=labels.mask_camera)  # fmt: skip
    partial_path.replace(path)
