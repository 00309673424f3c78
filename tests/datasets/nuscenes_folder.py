"""A small dataset in nuScenes' format, written by hand: other code than what it tests."""

from __future__ import annotations

import json
from pathlib import Path

import cv2
import numpy as np

START_US = 1_532_402_927_000_000
SAMPLE_TIMES_US = (0, 500_000, 2_600_000)  # the second gap is too long for a one-sided velocity
SIZE = (64, 36)
CATEGORIES = ("vehicle.car", "human.pedestrian.adult", "animal")
# object -> the samples it is annotated in
TRACKS = {"mover": (0, 1, 2), "once": (0,), "hidden": (0, 2), "late": (1, 2)}


def matrix(quaternion, translation) -> np.ndarray:
    """(4, 4) from w, x, y, z and metres, by the product of unit quaternions."""
    w, x, y, z = np.asarray(quaternion) / np.linalg.norm(quaternion)
    vector = np.array([x, y, z])
    cross = np.array([[0, -z, y], [z, 0, -x], [-y, x, 0]])
    result = np.eye(4)
    result[:3, :3] = (
        np.eye(3) + 2 * w * cross + 2 * (np.outer(vector, vector) - vector @ vector * np.eye(3))
    )
    result[:3, 3] = translation
    return result


def ego_pose(time_us: int) -> tuple[list[float], list[float]]:
    """Rotation and translation of a vehicle that turns, moves and tilts a little."""
    t = time_us * 1e-6
    return [np.cos(0.4 + t / 9), 0.004, 0.01, np.sin(0.4 + t / 9)], [411 + 9 * t, 1180 - 2 * t, 0.0]


def write_folder(
    root: Path,
    *,
    version: str = "v1.0-mini",
    scene: str = "scene-0061",
    cameras: tuple[str, ...] = ("CAM_FRONT", "CAM_BACK"),
    lidar: bool = True,
    radar: bool = True,
    lidar_yaw: float = 1.5,
    num_points: int = 300,
    annotated: bool = True,
) -> Path:
    """Three key frames, with two more sweeps before each but the first, all of the same walls."""
    tables = {name: [] for name in ("sample", "sample_data", "ego_pose", "sample_annotation")}
    tables["sensor"], tables["calibrated_sensor"], tables["instance"] = [], [], []
    tables["scene"] = [
        {
            "token": "s",
            "name": scene,
            "log_token": "l",
            "nbr_samples": 3,
            "description": "a } , { b",
        }
        | {"first_sample_token": "k0", "last_sample_token": "k2"}
    ]
    tables["log"] = [
        {"token": "l", "logfile": "x", "vehicle": "n015", "location": "boston-seaport"}
    ]
    tables["map"] = [{"token": "m", "filename": "maps/x.png", "log_tokens": ["l"], "category": "x"}]
    tables["category"] = [
        {"token": f"c{i}", "name": n, "description": ""} for i, n in enumerate(CATEGORIES)
    ]
    tables["attribute"] = [{"token": "a0", "name": "vehicle.moving", "description": ""}]
    tables["visibility"] = [
        {"token": str(i), "level": level, "description": ""}
        for i, level in enumerate(("v0-40", "v40-60", "v60-80", "v80-100"), 1)
    ]
    times = [START_US + t for t in SAMPLE_TIMES_US]
    for i, time_us in enumerate(times):
        tables["sample"].append(
            {"token": f"k{i}", "timestamp": time_us, "scene_token": "s"}
            | {"prev": f"k{i - 1}" if i else "", "next": f"k{i + 1}" if i < 2 else ""}
        )
    world = np.random.default_rng(0).uniform([-40, -40, 0], [40, 40, 3], (num_points, 3))
    world = world[np.linalg.norm(world[:, :2], axis=1) > 25] + [411, 1180, 0]
    half = lidar_yaw / 2
    sensors = [(name, "camera", [0.5, -0.5, 0.5, -0.5]) for name in cameras]
    sensors += [("LIDAR_TOP", "lidar", [np.cos(half), 0.01, 0.0, np.sin(half)])] if lidar else []
    sensors += [("RADAR_FRONT", "radar", [1.0, 0.0, 0.0, 0.0])] if radar else []
    for number, (channel, kind, rotation) in enumerate(sensors):
        translation = [0.9 + number / 10, 0.1, 1.8]
        tables["sensor"].append({"token": f"n{number}", "channel": channel, "modality": kind})
        intrinsic = (
            [[50.0, 0.0, 31.5], [0.0, 50.0, 17.5], [0.0, 0.0, 1.0]] if kind == "camera" else []
        )
        tables["calibrated_sensor"].append(
            {"token": f"cal-{channel}", "sensor_token": f"n{number}", "translation": translation}
            | {"rotation": rotation, "camera_intrinsic": intrinsic}
        )
        shots = [(t, True, i) for i, t in enumerate(times)]
        if kind == "lidar":
            for i in (1, 2):
                gap = times[i] - times[i - 1]
                shots += [(times[i - 1] + gap * j // 3, False, i) for j in (1, 2)]
        _write_shots(
            root, tables, channel, kind, sorted(shots), matrix(rotation, translation), world, number
        )
    if annotated:
        _write_annotations(tables)
    (root / "maps").mkdir(parents=True, exist_ok=True)
    cv2.imwrite(str(root / "maps/x.png"), np.zeros((10, 10), np.uint8))
    (root / version).mkdir(parents=True, exist_ok=True)
    for name, records in tables.items():
        (root / version / f"{name}.json").write_text(json.dumps(records, indent=0))
    return root


def _write_shots(root, tables, channel, kind, shots, ego_from_sensor, world, number) -> None:
    ending = {"camera": "jpg", "lidar": "pcd.bin", "radar": "pcd"}[kind]
    for j, (time_us, is_key, sample) in enumerate(shots):
        time_us += number * 1000  # each sensor has its own time
        token = f"{channel}-{j}"
        file = f"{'samples' if is_key else 'sweeps'}/{channel}/{time_us}.{ending}"
        rotation, translation = ego_pose(time_us - START_US)
        tables["ego_pose"].append(
            {"token": f"pose-{token}", "timestamp": time_us}
            | {"rotation": rotation, "translation": translation}
        )
        width, height = SIZE if kind == "camera" else (0, 0)
        tables["sample_data"].append(
            {"token": token, "sample_token": f"k{sample}", "ego_pose_token": f"pose-{token}"}
            | {"calibrated_sensor_token": f"cal-{channel}", "timestamp": time_us}
            | {"fileformat": ending[:3], "is_key_frame": is_key, "height": height, "width": width}
            | {"filename": file, "prev": f"{channel}-{j - 1}" if j else ""}
            | {"next": f"{channel}-{j + 1}" if j + 1 < len(shots) else ""}
        )
        path = root / file
        path.parent.mkdir(parents=True, exist_ok=True)
        if kind == "camera":
            shade = np.linspace(0, 255, SIZE[0], dtype=np.uint8)
            image = np.dstack(
                [
                    np.full(SIZE[::-1], 30 * j),
                    np.tile(shade, (SIZE[1], 1)),
                    np.full(SIZE[::-1], 200),
                ]
            )
            cv2.imwrite(str(path), image.astype(np.uint8))
        elif kind == "lidar":
            sensor_from_world = np.linalg.inv(matrix(rotation, translation) @ ego_from_sensor)
            xyz = world @ sensor_from_world[:3, :3].T + sensor_from_world[:3, 3]
            rest = np.stack([np.arange(len(xyz)) % 256, np.full(len(xyz), j % 32)], 1)
            near = np.array([[0.5, -0.5, 0.1, 9, 9], [1.5, 0.1, 0.1, 7, 7]])  # the vehicle; not it
            np.concatenate([near, np.hstack([xyz, rest])]).astype(np.float32).tofile(path)


def _write_annotations(tables) -> None:
    for n, (name, samples) in enumerate(TRACKS.items()):
        tokens = [f"{name}-{i}" for i in samples]
        tables["instance"].append(
            {"token": name, "category_token": f"c{n % 3}", "nbr_annotations": len(samples)}
            | {"first_annotation_token": tokens[0], "last_annotation_token": tokens[-1]}
        )
        for i, (sample, token) in enumerate(zip(samples, tokens)):
            yaw = 0.3 + n
            tables["sample_annotation"].append(
                {"token": token, "sample_token": f"k{sample}", "instance_token": name}
                | {"visibility_token": "" if n == 1 else str(1 + n)}
                | {"attribute_tokens": ["a0"] if n == 0 else [], "size": [1.9, 4.5, 1.6]}
                | {"translation": [420.0 + n + 5 * sample, 1190.0 - 3 * sample, 0.8]}
                | {"rotation": [np.cos(yaw / 2), 0.0, 0.0, np.sin(yaw / 2)]}
                | {
                    "prev": tokens[i - 1] if i else "",
                    "next": tokens[i + 1] if i + 1 < len(tokens) else "",
                }
                | {"num_lidar_pts": n, "num_radar_pts": 0}
            )
