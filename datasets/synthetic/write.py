"""Write a synthetic dataset in nuScenes' format."""

from __future__ import annotations

import json
import multiprocessing
import os
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path

import cv2
import numpy as np

from ..nuscenes.classes import ATTRIBUTES
from ..nuscenes.splits import SPLITS
from .map_layers import CANVAS, MapFile
from .recording import SceneJob, record_scene
from .rig import CAMERAS
from .streets import Street
from .tables import PER_SCENE, Tables, common_tables, map_records, token, write_tables
from .world import EXTENT

VAL_SHARE = 1 / 6


def scene_names(count: int) -> tuple[str, list[str]]:
    """Version and scene names of a dataset: official ones, so that official splits apply."""
    if count < 1:
        raise ValueError(f"scenes is {count}; give at least 1")
    mini = count <= 10
    train, val = (
        (SPLITS["mini_train"], SPLITS["mini_val"]) if mini else (SPLITS["train"], SPLITS["val"])
    )
    num_val = min(max(round(count * VAL_SHARE), 1 if count > 1 else 0), len(val))
    names = [*train[: count - num_val], *val[:num_val]]
    return ("v1.0-mini" if mini else "v1.0-trainval"), names


def place_scenes(count: int) -> list[tuple[str, tuple[float, float]]]:
    """Location and middle of each scene: the squares of a grid over the four known maps."""
    places = [
        (location, ((i + 0.5) * EXTENT, (j + 0.5) * EXTENT))
        for location, (width, height) in CANVAS.items()
        for i in range(int(width // EXTENT))
        for j in range(int(height // EXTENT))
    ]
    if count > len(places):
        raise ValueError(
            f"scenes is {count}; the four maps that the devkit knows have room for {len(places)}. "
            "Write several datasets with different seeds"
        )
    # Every location in turn, so that a small dataset has several.
    return [places[(i * 37) % len(places)] for i in range(count)]


def synthesize(
    root: Path | str,
    *,
    scenes: int = 10,
    frames: int = 40,
    seed: int = 0,
    image_size: tuple[int, int] = (1600, 900),
    camera_sweeps: bool = True,
    processes: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> None:
    """Write a synthetic nuScenes dataset: tables, blobs, maps, lidarseg and occupancy labels.

    The same arguments give the same bytes, whatever the number of processes.

    Args:
        root: folder to write; must be empty or new.
        scenes: number of scenes; up to 10 make v1.0-mini, more make v1.0-trainval. A sixth of
            them are of the validation split.
        frames: key frames per scene, at 2 Hz; each has nine sweeps before it, at 20 Hz.
        seed: of everything random.
        image_size: width and height of the images, pixels.
        camera_sweeps: also write images between the key frames, at 12 Hz.
        processes: worker processes; the default is one per core.
        progress: called with (scenes done, scenes in all).

    Raises:
        ValueError: if the arguments make no dataset, or root is not empty.
    """
    root = Path(root)
    if frames < 1:
        raise ValueError(f"frames is {frames}; give at least 1")
    if root.exists() and any(root.iterdir()):
        raise ValueError(f"{root} is not empty; give a new folder")
    version, names = scene_names(scenes)
    _make_folders(root, version)
    width, height = image_size
    jobs = [
        SceneJob(root, version, name, number, location, middle, seed, frames, (width, height),
                 camera_sweeps)
        for number, (name, (location, middle)) in enumerate(zip(names, place_scenes(scenes)))
    ]  # fmt: skip
    results = _record_all(jobs, processes, progress)
    tables = common_tables(ATTRIBUTES)
    for name in PER_SCENE:
        tables[name] = [record for result, _ in results for record in result[name]]
    logs: dict[str, list[str]] = {}
    for job in jobs:
        logs.setdefault(job.location, []).append(token(job.name, "log"))
    tables["map"] = map_records(logs)
    _write_maps(root, jobs, [street for _, street in results], tables)
    # Last: a folder with tables is a complete dataset.
    write_tables(root / version, tables)


def _record_all(
    jobs: list[SceneJob], processes: int | None, progress: Callable[[int, int], None] | None
) -> list[tuple[Tables, Street]]:
    report = progress or (lambda done, total: None)
    processes = processes or len(os.sched_getaffinity(0))
    if processes == 1 or len(jobs) == 1:
        results = []
        for job in jobs:
            results.append(_record(job))
            report(len(results), len(jobs))
        return results
    # Spawned, not forked: Open3D's threads do not survive a fork.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(min(processes, len(jobs)), mp_context=context) as pool:
        futures = [pool.submit(_record, job) for job in jobs]
        for done, future in enumerate(as_completed(futures), 1):
            future.result()  # raise at once what a worker raised
            report(done, len(jobs))
        return [future.result() for future in futures]


def _record(job: SceneJob) -> tuple[Tables, Street]:
    tables, world = record_scene(job)
    return tables, world.street


def _make_folders(root: Path, version: str) -> None:
    for channel in ("LIDAR_TOP", *(mount.channel for mount in CAMERAS)):
        for folder in ("samples", "sweeps"):
            (root / folder / channel).mkdir(parents=True, exist_ok=True)
    for folder in ("maps/expansion", f"lidarseg/{version}", "gts"):
        (root / folder).mkdir(parents=True, exist_ok=True)


def _write_maps(root: Path, jobs: list[SceneJob], streets: list[Street], tables: Tables) -> None:
    files = {location: MapFile(location) for location in CANVAS}
    for job, street in zip(jobs, streets):
        files[job.location].add(street)
    for location, file in files.items():
        path = root / "maps" / "expansion" / f"{location}.json"
        path.write_text(json.dumps(file.content))
    for record in tables["map"]:
        cv2.imwrite(str(root / record["filename"]), np.zeros((100, 100), np.uint8))
