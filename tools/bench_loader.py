"""Time the way of a frame from files to tensors, stage by stage, beside the devkit and PIL.

    python tools/bench_loader.py                              # on a synthetic set, made for it
    python tools/bench_loader.py ROOT --version v1.0-mini --results docs/results/loader.json

One process, one thread. Both sides get a frame's calibration and annotations, decode its images
and bring them to the network's size, and merge 10 LiDAR sweeps. A frame's time is the median over
the repetitions, after a warm-up; files come from the page cache.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import cv2
import numpy as np
import torch

from bevstack.datasets.augment.bev import BEVAugmentation
from bevstack.datasets.augment.image import ImageAugmentation, ImageResize
from bevstack.datasets.encode import Encoder
from bevstack.datasets.frame import Frame
from bevstack.datasets.nuscenes.index import build_index
from bevstack.datasets.nuscenes.reader import NuScenesReader
from bevstack.datasets.points import merge_sweeps

SIZE = (704, 256)  # width and height of the network's images, as in published models
NUM_SWEEPS = 10  # the key sweep and nine before it
POINT_RANGE = (-54.0, -54.0, -5.0, 54.0, 54.0, 3.0)


class Held:
    """A loader of data that is in memory."""

    def __init__(self, data: np.ndarray) -> None:
        self.data = data

    def __call__(self, reduction: int = 1) -> np.ndarray:
        return self.data


def decoded(frame: Frame) -> Frame:
    """The frame with its images in memory, and its merged points as one sweep."""
    cameras = tuple(replace(camera, load=Held(camera.load())) for camera in frame.cameras)
    merged = replace(
        frame.sweeps[0],
        load=Held(merge_sweeps(frame, NUM_SWEEPS)),
        ego_from_lidar=np.eye(4),
        global_from_ego=frame.global_from_ego,
    )
    return replace(frame, cameras=cameras, sweeps=(merged,))


def our_stages(reader: NuScenesReader, i: int) -> dict[str, Callable[[], Any]]:
    """What is timed on our side; every stage begins where the one before it ended."""
    frame = reader[i]
    resize = ImageResize(SIZE)
    turn = ImageAugmentation(SIZE, resize=(0.9, 1.2), flip=True, rotation=(-0.1, 0.1))
    move = BEVAugmentation(rotation=(-0.8, 0.8), scale=(0.9, 1.1), flip_x=True, flip_y=True)
    encoder = Encoder(POINT_RANGE, SIZE, num_sweeps=NUM_SWEEPS)
    small = decoded(resize(frame, 0))
    return {
        "read": lambda: reader[i],
        "decode": lambda: [camera.load() for camera in resize(frame, 0).cameras],
        "sweeps": lambda: merge_sweeps(frame, NUM_SWEEPS),
        "augment": lambda: [camera.load() for camera in move(turn(small, 0), 0).cameras],
        "encode": lambda: encoder(small),
    }


def devkit_stages(devkit: Any, token: str) -> dict[str, Callable[[], Any]]:
    """The same work as our read, decode and sweeps."""
    from nuscenes.utils.data_classes import LidarPointCloud
    from PIL import Image

    sample = devkit.get("sample", token)
    cameras = sorted(channel for channel in sample["data"] if channel.startswith("CAM"))

    def read() -> list:
        boxes = [(devkit.get_box(a), devkit.box_velocity(a)) for a in sample["anns"]]
        for channel in cameras:
            data = devkit.get("sample_data", sample["data"][channel])
            boxes.append(devkit.get("ego_pose", data["ego_pose_token"]))
            boxes.append(devkit.get("calibrated_sensor", data["calibrated_sensor_token"]))
        return boxes

    def decode() -> list[np.ndarray]:
        images = []
        for channel in cameras:
            image = Image.open(devkit.get_sample_data_path(sample["data"][channel]))
            height = round(image.height * SIZE[0] / image.width)
            image = image.resize((SIZE[0], height))
            images.append(np.asarray(image.crop((0, height - SIZE[1], SIZE[0], height))))
        return images

    def sweeps() -> tuple:
        return LidarPointCloud.from_file_multisweep(
            devkit, sample, "LIDAR_TOP", "LIDAR_TOP", NUM_SWEEPS
        )

    return {"read": read, "decode": decode, "sweeps": sweeps}


def seconds(work: Callable[[], Any], repetitions: int) -> float:
    """Median time of one call, after one that is not counted."""
    work()
    times = []
    for _ in range(repetitions):
        began = time.perf_counter()
        work()
        times.append(time.perf_counter() - began)
    return float(np.median(times))


def measure(root: Path, version: str, num_frames: int, repetitions: int) -> dict[str, Any]:
    """Mean seconds per frame of each stage, ours and the devkit's, over the same frames."""
    from nuscenes import NuScenes

    with tempfile.TemporaryDirectory() as index_dir:
        build_index(root, version, index_dir=index_dir)
        reader = NuScenesReader(root, version, previous_sweeps=NUM_SWEEPS - 1, index_dir=index_dir)
        full = [i for i in range(len(reader)) if len(reader[i].sweeps) == NUM_SWEEPS]
        chosen = np.array(full or range(len(reader)))
        chosen = chosen[np.linspace(0, len(chosen) - 1, min(num_frames, len(chosen))).astype(int)]
        devkit = NuScenes(version, str(root), verbose=False)
        ours: dict[str, list[float]] = {}
        theirs: dict[str, list[float]] = {}
        for i in chosen.tolist():
            token = reader[i].token
            # Frame by frame in turn, so that both sides see the same state of the machine.
            for table, stages in (
                (ours, our_stages(reader, i)),
                (theirs, devkit_stages(devkit, token)),
            ):
                for stage, work in stages.items():
                    table.setdefault(stage, []).append(seconds(work, repetitions))
        frame = reader[int(chosen[0])]
        return {
            "frames": len(chosen),
            "cameras": len(frame.cameras),
            "sweeps": len(frame.sweeps),
            "points": len(merge_sweeps(frame)),
            "bevstack": {stage: float(np.mean(t)) for stage, t in ours.items()},
            "devkit": {stage: float(np.mean(t)) for stage, t in theirs.items()},
        }


def summarise(result: dict[str, Any]) -> None:
    """Print the table and add the ratio to the result."""
    ours, theirs = result["bevstack"], result["devkit"]
    print(
        f"{result['frames']} frames of {result['cameras']} cameras and {result['sweeps']} sweeps "
        f"({result['points']:,} points); one core; {SIZE[0]}x{SIZE[1]} images"
    )
    print(f"{'stage':10}{'bevstack':>22}{'devkit and PIL':>22}{'ratio':>8}")
    shared = sum(ours[stage] for stage in theirs)
    result["ratio"] = sum(theirs.values()) / shared
    rows = [(stage, t, theirs.get(stage)) for stage, t in ours.items()]
    rows += [("these three", shared, sum(theirs.values())), ("all", sum(ours.values()), None)]
    for stage, mine, other in rows:
        line = f"{stage:12}{mine * 1e3:8.2f} ms {1 / mine:8.1f}/s"
        if other is not None:
            line += f"{other * 1e3:10.2f} ms {1 / other:8.1f}/s{other / mine:8.1f}"
        print(line)
    print(
        f"{1 / sum(ours.values()):.1f} frames per second and core through all stages; reading, "
        f"decoding and merging take {result['ratio']:.1f} times less than with the devkit and PIL"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("root", type=Path, nargs="?", help="a nuScenes folder; synthetic if absent")
    parser.add_argument("--version", default="v1.0-mini")
    parser.add_argument("--frames", type=int, default=6)
    parser.add_argument("--repetitions", type=int, default=7)
    parser.add_argument("--results", type=Path, help="write the figures to this JSON file")
    options = parser.parse_args()
    cv2.setNumThreads(0)
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as scratch:
        root = options.root
        if root is None:
            from bevstack.datasets.synthetic.write import synthesize

            root = Path(scratch)
            print("making a synthetic data set", flush=True)
            synthesize(root, scenes=1, frames=5, camera_sweeps=False)
        result = measure(root, options.version, options.frames, options.repetitions)
    result["machine"] = f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores"
    summarise(result)
    if options.results:
        options.results.parent.mkdir(parents=True, exist_ok=True)
        options.results.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
