"""Write a corrupted nuScenes folder.

Sensor data that the corruption changes are written, everything else is a link to the clean folder.
A sweep between key frames belongs to the key frame after it, as in nuScenes' tables: it is written
once, as that frame's corruption makes it.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from multiprocessing import get_context
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from ...errors import DataError
from ...frame import Camera, Frame, LidarSweep
from ...nuscenes.index import build_index
from ...nuscenes.reader import NuScenesReader
from ...nuscenes.sensor_files import ImageFile, PointFile
from ...seeding import epoch_seed
from ..entry import Entry, Touches
from ..suites import suite_of
from .guard import NAME, Guard, digest
from .tables import Placement, changed_placement, rewrite_tables

_PREVIOUS_SWEEPS = 12  # more than lie between two key frames (9 or 10)
_LABELS_OF_POINTS = ("lidarseg", "panoptic")  # one label for each point of a key sweep
_JPEG_QUALITY = 95


def write_folder(
    root: Path | str,
    out: Path | str,
    suite: str,
    name: str,
    severity: int,
    version: str = "v1.0-trainval",
    split: str | None = None,
    seed: int = 0,
    as_published: bool = False,
    processes: int = 1,
    progress: Callable[[int, int], None] | None = None,
) -> Guard:
    """Corrupt a dataset's files; a run that was interrupted goes on where it was.

    Args:
        root: the clean folder.
        out: folder to write, new or empty.
        suite: name of the benchmark.
        name: of the corruption.
        severity: from 1.
        version: of the tables.
        split: whose frames are corrupted; the others stay clean. None for all.
        seed: the same seed gives the same files, whatever the number of processes.
        as_published: with the benchmark's flaws.
        processes: that share the frames.
        progress: is told the frames done and all.

    Returns:
        What was done, as it lies in the folder.

    Raises:
        DataError: if a folder cannot be used.
        ValueError: if there is no such suite, corruption or severity.
    """
    root, out = Path(root).resolve(), Path(out).resolve()
    entry = suite_of(suite)[name]
    entry.at(severity)
    if severity == 0:
        raise ValueError("severity 0 is the clean data; there is nothing to write")
    guard = Guard(
        complete=False, root=str(root), version=version, split=split, suite=suite, name=entry.name,
        severity=severity, seed=seed, as_published=as_published, touches=_names(entry.touches),
        fidelity=tuple(f"{part.fidelity.value}: {part.remark}" for part in entry.parts),
    )  # fmt: skip
    _check_places(root, out, guard)
    out.mkdir(parents=True, exist_ok=True)
    guard.write(out)
    with tempfile.TemporaryDirectory() as index_dir:
        build_index(root, version, _PREVIOUS_SWEEPS, index_dir=index_dir)
        job = _Job(guard, out, index_dir)
        frames = len(job.reader())
        parts: list[_Done] = []
        for part in _all_frames(job, frames, processes):
            parts.append(part)
            if progress:
                progress(len(parts), frames)
    files = [file for part in parts for file in part.written]
    placements = [place for part in parts for place in part.placements]
    left_out = _link_rest(root, out, version, set(files), entry)
    if placements:
        for table in ("sample_data", "calibrated_sensor", "ego_pose"):
            (out / version / f"{table}.json").unlink(missing_ok=True)
        files += rewrite_tables(root, version, out, placements)
    guard = replace(
        guard,
        complete=True,
        frames=frames,
        unchanged=sum(part.unchanged for part in parts),
        unindexed=_count_unindexed(root, entry, set(files)),
        left_out=left_out,
        files={name: digest(out / name) for name in sorted(files)},
    )
    guard.write(out)
    return guard


def _names(touches: Touches) -> str:
    return ", ".join((part.name or "").lower() for part in touches)


def _check_places(root: Path, out: Path, guard: Guard) -> None:
    if out == root or root in out.parents or out in root.parents:
        raise DataError(f"{out} and {root} lie in one another; choose a folder beside the data")
    if (out / NAME).is_file():
        if not Guard.read(out).same_work(guard):
            raise DataError(f"{out} holds another corruption; choose a new folder or remove it")
    elif out.is_dir() and any(out.iterdir()):
        raise DataError(f"{out} is not empty; choose a new folder")


@dataclass(frozen=True)
class _Done:
    """What became of some frames' files."""

    unchanged: int
    written: tuple[str, ...]
    placements: tuple[Placement, ...]


@dataclass(frozen=True)
class _Job:
    """What a process needs to know."""

    guard: Guard
    out: Path
    index_dir: str

    def reader(self) -> NuScenesReader:
        return NuScenesReader(
            self.guard.root, self.guard.version, self.guard.split, _PREVIOUS_SWEEPS,
            index_dir=self.index_dir,
        )  # fmt: skip


def _all_frames(job: _Job, frames: int, processes: int) -> Iterator[_Done]:
    if processes <= 1:
        worker = _Worker(job)
        yield from map(worker.write_frame, range(frames))
        return
    context = get_context("spawn")
    with ProcessPoolExecutor(processes, context, _start, (job,)) as pool:
        yield from pool.map(_write_frame, range(frames), chunksize=8)


_worker: _Worker | None = None  # of a process of the pool


def _start(job: _Job) -> None:
    global _worker
    cv2.setNumThreads(1)
    _worker = _Worker(job)


def _write_frame(i: int) -> _Done:
    assert _worker is not None
    return _worker.write_frame(i)


class _Worker:
    """Corrupts frames one by one."""

    def __init__(self, job: _Job) -> None:
        guard = job.guard
        self.root, self.out = Path(guard.root), job.out
        self.reader = job.reader()
        self.step = suite_of(guard.suite)[guard.name].at(guard.severity, guard.as_published)
        self.seed = epoch_seed(guard.seed, 0)

    def write_frame(self, i: int) -> _Done:
        clean = self.reader[i]
        changed = self.step(clean, self.seed)
        unchanged, written, placements = 0, [], []
        for file, before, after in self._pairs(clean, changed):
            if after is not None and (place := changed_placement(file, before, after)):
                placements.append(place)
            if after is not None and after.load is before.load:
                unchanged += 1
            elif self._write(file, before, after):
                written.append(file)
            else:
                unchanged += 1
        return _Done(unchanged, tuple(written), tuple(placements))

    def _pairs(
        self, clean: Frame, changed: Frame
    ) -> Iterator[tuple[str, Camera | LidarSweep, Camera | LidarSweep | None]]:
        """The files that belong to the frame, before and after; None for what was taken away."""
        cameras = {camera.name: camera for camera in changed.cameras}
        for camera in clean.cameras:
            yield self._file(camera), camera, cameras.get(camera.name)
        for number, sweep in enumerate(clean.sweeps):
            file = self._file(sweep)
            if number and file.startswith("samples/"):
                return  # the key frame before, and what belongs to it
            yield file, sweep, changed.sweeps[number] if number < len(changed.sweeps) else None

    def _file(self, sensor: Camera | LidarSweep) -> str:
        assert isinstance(sensor.load, (ImageFile, PointFile))
        return sensor.load.path.relative_to(self.root).as_posix()

    def _write(
        self, file: str, before: Camera | LidarSweep, after: Camera | LidarSweep | None
    ) -> bool:
        """Whether the corruption made another file of it."""
        path = self.out / file
        if path.is_file() and not path.is_symlink():
            return True  # by the run that was interrupted
        if isinstance(before, Camera):
            content = _image_bytes(before, after, path.suffix)
        else:
            content = _cloud_bytes(before, after)
        if content is None:
            return False
        path.parent.mkdir(parents=True, exist_ok=True)
        if self.root in path.parent.resolve().parents:  # never through a link into clean data
            raise DataError(f"{path.parent} is a link to the clean data; remove {self.out}")
        partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
        partial.write_bytes(content)
        partial.replace(path)
        return True


def _cloud_bytes(before: LidarSweep, after: Camera | LidarSweep | None) -> bytes | None:
    points = before.load()
    changed: NDArray = points[:0] if after is None else after.load()
    return None if np.array_equal(points, changed) else changed.astype(np.float32).tobytes()


def _image_bytes(before: Camera, after: Camera | LidarSweep | None, suffix: str) -> bytes | None:
    if after is not None and isinstance(after.load, ImageFile):  # another moment's image
        assert isinstance(before.load, ImageFile)
        content = after.load.path.read_bytes()
        return None if content == before.load.path.read_bytes() else content
    pixels = before.load()
    changed: NDArray = np.zeros_like(pixels) if after is None else after.load()
    if np.array_equal(pixels, changed):
        return None
    quality = [cv2.IMWRITE_JPEG_QUALITY, _JPEG_QUALITY] if suffix in (".jpg", ".jpeg") else []
    good, coded = cv2.imencode(suffix, np.ascontiguousarray(changed[..., ::-1]), quality)
    if not good:
        raise DataError(f"an image of {before.name} cannot be written as {suffix}")
    return coded.tobytes()


def _link_rest(
    root: Path, out: Path, version: str, written: set[str], entry: Entry
) -> tuple[str, ...]:
    """Link everything that was not written; gives what no longer fits and is left out."""
    points_changed = bool(entry.touches & Touches.LIDAR)
    left_out = []
    for path in sorted(root.iterdir()):
        if path.name in ("samples", "sweeps") or path.name == version:
            continue
        if path.name in _LABELS_OF_POINTS and points_changed:
            left_out.append(path.name)
        else:
            _link(path, out / path.name)
    for table in sorted((root / version).iterdir()):
        if table.name == ".bevstack" or (table.stem in left_out and table.suffix == ".json"):
            continue
        _link(table, out / version / table.name)
    folders_written = {file.rsplit("/", 1)[0] for file in written}
    for kind in ("samples", "sweeps"):
        for channel in sorted((root / kind).iterdir()) if (root / kind).is_dir() else ():
            name = f"{kind}/{channel.name}"
            if name not in folders_written:
                _link(channel, out / name)
                continue
            for file in channel.iterdir():
                if f"{name}/{file.name}" not in written:
                    _link(file, out / name / file.name)
    return tuple(left_out)


def _link(target: Path, link: Path) -> None:
    link.parent.mkdir(parents=True, exist_ok=True)
    if not link.is_symlink():
        link.symlink_to(target.resolve())


def _count_unindexed(root: Path, entry: Entry, written: set[str]) -> int:
    """Files between key frames of the touched sensors that stay clean."""
    prefixes = [
        prefix
        for touch, prefix in ((Touches.LIDAR, "LIDAR"), (Touches.CAMERA, "CAM"))
        if touch in entry.touches
    ]
    folders = [f for f in (root / "sweeps").glob("*") if f.name.startswith(tuple(prefixes))]
    names = [f"sweeps/{folder.name}/{file.name}" for folder in folders for file in folder.iterdir()]
    return sum(name not in written for name in names)
