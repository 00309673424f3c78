"""Time every corruption of every suite on the real key frame, beside the originals' own figures.

    python tools/bench_corruptions.py                          # print the tables
    python tools/bench_corruptions.py --results docs/results   # and write corruptions.md and .json

One process, one thread; CPU time of loading a frame's corrupted sensors, files and decoding not
counted, the median of the repetitions after one that is not counted. The originals' CPU times are
those that their own code took on a machine of this kind (``PEERS``), without files likewise; they
are of another run, so ratios hold to some tens of percent.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import cv2
import numpy as np
from provenance import provenance

from bevstack.datasets.corruptions import SUITES, Entry
from bevstack.datasets.corruptions.measure import differs, frame_change
from bevstack.datasets.frame import Frame
from bevstack.datasets.nuscenes.index import build_index
from bevstack.datasets.nuscenes.reader import NuScenesReader

KEY_FRAME = Path(__file__).resolve().parents[2] / "shared" / "data" / "nuscenes-keyframe"
VALIDATION_FRAMES = 6019
CLOUDS_PER_FRAME = 64_700 / VALIDATION_FRAMES  # key sweep and the sweeps of mmdetection3d's lists
PEER_HOURS = 1123  # of MultiCorrupt over the validation frames, three severities

# CPU milliseconds of the originals by severity: one cloud ("lidar") and six images ("camera").
PEERS: dict[tuple[str, str], dict[str, tuple[float, ...]]] = {
    ("multicorrupt", "beamsreducing"): {"lidar": (0.58, 0.31, 0.18)},
    ("multicorrupt", "pointsreducing"): {"lidar": (0.47, 0.43, 0.40)},
    ("multicorrupt", "motionblur"): {"lidar": (2.90, 2.60, 2.62), "camera": (1660, 1650, 1600)},
    ("multicorrupt", "fog"): {"lidar": (250, 250, 280), "camera": (33_500, 33_400, 33_300)},
    ("multicorrupt", "snow"): {"lidar": (21_000, 15_300, 13_800), "camera": (1310, 1280, 1350)},
    ("multicorrupt", "spatialmisalignment"): {"lidar": (1.04, 1.05, 1.04)},
    ("multicorrupt", "brightness"): {"camera": (3000, 3110, 2970)},
    ("multicorrupt", "dark"): {"camera": (2430, 2360, 2210)},
    ("robobev", "CameraCrash"): {"camera": (410, 410, 420)},
    ("robobev", "FrameLost"): {"camera": (420, 420, 420)},
    ("robobev", "ColorQuant"): {"camera": (490, 510, 490)},
    ("robobev", "Fog"): {"camera": (1020, 980, 1000)},
    ("robobev", "Snow"): {"camera": (1780, 1810, 1870)},
    ("robobev", "MotionBlur"): {"camera": (2020, 2220, 2510)},
    ("robobev", "LowLight"): {"camera": (2680, 2430, 2330)},
    ("robobev", "Brightness"): {"camera": (3700, 3380, 3270)},
    ("robo3d", "beam_missing"): {"lidar": (6.16, 9.7, 12.8)},
    ("robo3d", "cross_sensor"): {"lidar": (6.13, 9.33, 10.5)},
    ("robo3d", "crosstalk"): {"lidar": (3.01, 2.84, 2.71)},
    ("robo3d", "incomplete_echo"): {"lidar": (6.43, 4.80, 5.77)},
    ("robo3d", "motion_blur"): {"lidar": (6.37, 5.99, 6.31)},
    ("robo3d", "wet_ground"): {"lidar": (11.8, 12.2, 13.6)},
    ("robo3d", "fog"): {"lidar": (260, 270, 290)},
    ("robo3d", "snow"): {"lidar": (24_500, 19_500, 15_900)},
    ("nuscenes_c", "density"): {"lidar": (0.77, 0.79, 0.82, 0.76, 0.78)},
    ("nuscenes_c", "cutout"): {"lidar": (3.38, 4.65, 8.17, 10.5, 14.9)},
    ("nuscenes_c", "crosstalk"): {"lidar": (0.41, 0.42, 0.47, 0.45, 0.48)},
    ("nuscenes_c", "fov_lost"): {"lidar": (0.73, 0.66, 0.69, 0.59, 0.61)},
    ("nuscenes_c", "gaussian_lidar"): {"lidar": (4.11, 3.46, 4.34, 4.18, 4.72)},
    ("nuscenes_c", "uniform_lidar"): {"lidar": (1.83, 1.56, 1.97, 1.81, 2.06)},
    ("nuscenes_c", "impulse_lidar"): {"lidar": (0.51, 0.51, 0.49, 0.54, 0.61)},
    ("nuscenes_c", "motion_compensation"): {"lidar": (17.3, 18.0, 18.1, 17.6, 19.2)},
    ("nuscenes_c", "local_density"): {"lidar": (9310, 9260, 9340, 9210, 9240)},
    ("nuscenes_c", "local_cutout"): {"lidar": (9260, 9290, 9310, 9210, 9270)},
    ("nuscenes_c", "local_gaussian"): {"lidar": (9360, 9280, 9300, 9270, 9260)},
    ("nuscenes_c", "local_uniform"): {"lidar": (9360, 9320, 9270, 9250, 9310)},
    ("nuscenes_c", "local_impulse"): {"lidar": (9400, 9340, 9550, 9280, 9330)},
    ("nuscenes_c", "moving_object"): {
        "lidar": (9350, 9360, 9330, 9280, 9360),
        "camera": (2400, 2070, 2160, 2200, 2210),
    },
    ("nuscenes_c", "scale"): {
        "lidar": (2650, 2630, 2610, 2620, 2550),
        "camera": (720, 720, 750, 840, 1090),
    },
    ("nuscenes_c", "shear"): {
        "lidar": (2610, 2610, 2540, 2560, 2530),
        "camera": (580, 660, 680, 770, 750),
    },
    ("nuscenes_c", "rotation"): {
        "lidar": (2580, 2590, 2550, 2540, 2550),
        "camera": (620, 670, 660, 630, 600),
    },
    ("nuscenes_c", "rain"): {
        "lidar": (1940, 1950, 1980, 2000, 2020),
        "camera": (720, 670, 760, 790, 640),
    },
    ("nuscenes_c", "snow"): {
        "lidar": (33_600, 24_100, 22_400, 23_800, 25_800),
        "camera": (1700, 1570, 1640, 1870, 1590),
    },
    ("nuscenes_c", "fog"): {
        "lidar": (240, 240, 250, 250, 290),
        "camera": (700, 570, 700, 720, 590),
    },
    ("nuscenes_c", "sunlight"): {"camera": (320, 300, 560, 340, 320)},  # the cloud included
    ("nuscenes_c", "gaussian_camera"): {"camera": (580, 540, 560, 580, 610)},
    ("nuscenes_c", "uniform_camera"): {"camera": (260, 230, 270, 270, 270)},
    ("nuscenes_c", "impulse_camera"): {"camera": (490, 460, 520, 560, 600)},
    ("nuscenes_c", "motion_blur"): {"camera": (1700, 2870, 4160, 5450, 6600)},
}


@dataclass(frozen=True)
class Cell:
    """One severity of one entry."""

    suite: str
    name: str
    severity: int
    lidar_ms: float  # one cloud
    camera_ms: float  # all images
    peer_lidar_ms: float | None
    peer_camera_ms: float | None
    points_lost: float  # share
    points_altered: float  # share of the clean points that are not there as they were
    range_shift: float  # of the mean, metres
    intensity_scale: float  # of the mean
    pixel_change: float  # mean, of 255

    @property
    def total_ms(self) -> float:
        """The cloud and all images."""
        return self.lidar_ms + self.camera_ms

    @property
    def lidar_ratio(self) -> float | None:
        """How many times faster than the original on one cloud."""
        return self.peer_lidar_ms / self.lidar_ms if self.peer_lidar_ms and self.lidar_ms else None

    @property
    def camera_ratio(self) -> float | None:
        """How many times faster than the original on all images."""
        if not (self.peer_camera_ms and self.camera_ms):
            return None
        return self.peer_camera_ms / self.camera_ms


class Held:
    """A loader of data that is in memory."""

    def __init__(self, data: np.ndarray) -> None:
        self.data = data

    def __call__(self, reduction: int = 1) -> np.ndarray:
        return self.data


def held(frame: Frame) -> Frame:
    """The frame and the key frame before it, where there is one, with sensor data in memory."""
    loaded = replace(
        frame,
        cameras=tuple(replace(c, load=Held(c.load())) for c in frame.cameras),
        sweeps=tuple(replace(s, load=Held(s.load())) for s in frame.sweeps),
    )
    before = frame.previous() if frame.previous else None
    before = replace(held(before), previous=None) if before is not None else None
    return replace(loaded, previous=lambda: before)


def cpu_ms(work: Callable[[], Any], repetitions: int, longest_s: float = 4.0) -> float:
    """Median CPU time of a call, after one that is not counted."""
    work()
    times, began = [], time.perf_counter()
    while len(times) < repetitions and (time.perf_counter() - began < longest_s or len(times) < 3):
        start = time.process_time()
        work()
        times.append(time.process_time() - start)
    return float(np.median(times)) * 1e3


def measure(
    frame: Frame, suite: str, entry: Entry, severity: int, repetitions: int, peers: bool = True
) -> Cell:
    """Time one severity, and what it changes (the mean over 3 seeds).

    ``peers``: put the originals' times beside; they are of the real key frame.
    """
    step = entry.at(severity)
    seed, lidar_ms, camera_ms = 0, 0.0, 0.0
    while not differs(frame, step(frame, seed)) and seed < 50:  # until the coin falls
        seed += 1
    changed = step(frame, seed)
    # A loader that the step left alone costs nothing.
    if any(a.load is not b.load for a, b in zip(frame.sweeps, changed.sweeps)):
        lidar_ms = cpu_ms(lambda: [s.load() for s in step(frame, seed).sweeps], repetitions)
    if any(a.load is not b.load for a, b in zip(frame.cameras, changed.cameras)):
        camera_ms = cpu_ms(lambda: [c.load() for c in step(frame, seed).cameras], repetitions)
    changes = [frame_change(frame, step(frame, s)) for s in range(seed, seed + 3)]
    clouds = [change.cloud for change in changes if change.cloud]

    def mean(field: str) -> float:
        return float(np.mean([getattr(cloud, field) for cloud in clouds]))

    peer = PEERS.get((suite, entry.name), {}) if peers else {}
    return Cell(
        suite=suite,
        name=entry.name,
        severity=severity,
        lidar_ms=lidar_ms,
        camera_ms=camera_ms,
        peer_lidar_ms=peer["lidar"][severity - 1] if "lidar" in peer else None,
        peer_camera_ms=peer["camera"][severity - 1] if "camera" in peer else None,
        points_lost=mean("lost"),
        points_altered=mean("altered"),
        range_shift=mean("range_shift"),
        intensity_scale=mean("intensity_scale"),
        pixel_change=float(np.mean([change.camera_damage for change in changes])),
    )


def projected_hours(cells: list[Cell]) -> float:
    """CPU hours of MultiCorrupt over the validation frames with all their sweeps."""
    return sum(
        VALIDATION_FRAMES * (CLOUDS_PER_FRAME * cell.lidar_ms + cell.camera_ms) / 3.6e6
        for cell in cells
        if cell.suite == "multicorrupt"
    )


def number(value: float | None) -> str:
    """A cell of the table."""
    if not value:
        return ""
    return f"{value:.2g}" if value < 10 else f"{value:,.0f}"


HEAD = (
    "| suite | corruption | severity | cloud ms | original | times faster | images ms | original | "
    "times faster | points lost | points altered | range shift m | intensity | pixels of 255 |",
    "|---|---|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|",
)


def row(c: Cell) -> str:
    """Markdown of one severity."""
    times = (c.lidar_ms, c.peer_lidar_ms, c.lidar_ratio, c.camera_ms, c.peer_camera_ms)
    return (
        f"| {c.suite} | {c.name} | {c.severity} | "
        f"{' | '.join(number(t) for t in (*times, c.camera_ratio))} | {c.points_lost:.1%} | "
        f"{c.points_altered:.1%} | {c.range_shift:+.2f} | {c.intensity_scale:.2f} | "
        f"{c.pixel_change:.1f} |"
    )


def summary(cells: list[Cell]) -> list[str]:
    """A paragraph on each suite as a whole."""
    lines = []
    for suite in SUITES:
        own = [c for c in cells if c.suite == suite]
        if not own:
            continue
        slower = {c.name for c in own if min(c.lidar_ratio or np.inf, c.camera_ratio or np.inf) < 1}
        lines += [
            f"{suite}: {len({c.name for c in own})} corruptions, {len(own)} severities, "
            f"{sum(c.total_ms for c in own) / 1e3:.2f} s for all of them on one cloud and its "
            f"images; slower than the original: {', '.join(sorted(slower)) or 'none'}.",
            "",
        ]
    for sensor, name in (("lidar", "snow"), ("lidar", "fog"), ("camera", "fog")):
        ratios = [
            getattr(c, f"{sensor}_ratio")
            for c in cells
            if (c.suite, c.name) == ("multicorrupt", name) and getattr(c, f"{sensor}_ratio")
        ]
        if ratios:
            times = " / ".join(f"{ratio:,.0f}" for ratio in ratios)
            lines += [f"MultiCorrupt's {name} on the {sensor}: {times} times faster.", ""]
    if any(c.suite == "multicorrupt" and (c.lidar_ratio or c.camera_ratio) for c in cells):
        lines.append(
            f"MultiCorrupt over {VALIDATION_FRAMES:,} validation frames and their sweeps "
            f"({CLOUDS_PER_FRAME:.2f} clouds a frame), three severities: "
            f"{projected_hours(cells):.1f} CPU hours; the original's projection is {PEER_HOURS:,}."
        )
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--root", type=Path, default=KEY_FRAME, help="a nuScenes folder")
    parser.add_argument("--version", default="v1.0-mini")
    parser.add_argument("--suite", help="only this one")
    parser.add_argument("--name", help="only this corruption")
    parser.add_argument("--repetitions", type=int, default=11)
    parser.add_argument("--results", type=Path, help="folder for corruptions.md and .json")
    options = parser.parse_args()
    cv2.setNumThreads(1)
    with tempfile.TemporaryDirectory() as index_dir:
        build_index(options.root, options.version, index_dir=index_dir)
        reader = NuScenesReader(options.root, options.version, None, 0, index_dir=index_dir)
        frame = held(reader[len(reader) // 2])  # one with earlier frames, where there are any
    print("\n".join(HEAD))
    cells, peers = [], options.root == KEY_FRAME
    for name, suite in SUITES.items():
        if options.suite not in (None, name):
            continue
        for entry in [suite[options.name]] if options.name else suite.entries:
            for severity in range(1, entry.severities + 1):
                cells.append(measure(frame, name, entry, severity, options.repetitions, peers))
                print(row(cells[-1]), flush=True)
    print("\n" + "\n".join(summary(cells)))
    if options.results:
        write(
            cells,
            options.results,
            " ".join(["python", "tools/bench_corruptions.py", *sys.argv[1:]]),
        )


def write(cells: list[Cell], folder: Path, command: str) -> None:
    """corruptions.md and corruptions.json."""
    origin = provenance(command)
    lines = ["# Corruptions: time and effect on one frame", ""]
    lines += [f"`{command}`, commit {origin['commit']}, {origin['date']}, {origin['machine']}.", ""]
    lines += [*(__doc__ or "").split("\n\n")[2].strip().splitlines(), ""]
    lines += [*summary(cells), "", *HEAD, *map(row, cells)]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "corruptions.md").write_text("\n".join(lines) + "\n")
    content = {"provenance": origin, "cells": [asdict(cell) for cell in cells]}
    content["multicorrupt_cpu_hours"] = projected_hours(cells)
    (folder / "corruptions.json").write_text(json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    main()
