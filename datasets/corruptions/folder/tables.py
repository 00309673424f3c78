"""Tables of a folder whose calibration or times were changed."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ...camera_models import Pinhole
from ...errors import DataError
from ...frame import Camera, LidarSweep
from ...geometry import quaternion_from_rotation
from ...nuscenes.tables import table_path

_ROUNDING = 1e-6  # of rotations


@dataclass(frozen=True)
class Placement:
    """What the tables say of one sensor file, where it changed."""

    file: str  # relative to the root
    ego_from_sensor: NDArray[np.float64]
    global_from_ego: NDArray[np.float64]
    intrinsic: NDArray[np.float64]  # (3, 3), or (0,) for a LiDAR
    timestamp_us: int


def changed_placement(
    file: str, clean: Camera | LidarSweep, changed: Camera | LidarSweep
) -> Placement | None:
    """The new placement of a sensor file; None if it is the old one."""
    before, after = _placement(file, clean), _placement(file, changed)
    same = all(
        np.array_equal(a, b)
        for a, b in (
            (before.ego_from_sensor, after.ego_from_sensor),
            (before.global_from_ego, after.global_from_ego),
            (before.intrinsic, after.intrinsic),
        )
    )
    return None if same and before.timestamp_us == after.timestamp_us else after


def _placement(file: str, sensor: Camera | LidarSweep) -> Placement:
    if isinstance(sensor, LidarSweep):
        mounting, intrinsic = sensor.ego_from_lidar, np.zeros(0)
    else:
        if not isinstance(sensor.model, Pinhole):
            raise ValueError(f"{sensor.name} is no Pinhole; nuScenes' tables hold nothing else")
        mounting, intrinsic = sensor.ego_from_camera, sensor.model.intrinsic
    return Placement(file, mounting, sensor.global_from_ego, intrinsic, sensor.timestamp_us)


def rewrite_tables(root: Path, version: str, out: Path, placements: list[Placement]) -> list[str]:
    """Write the tables with new placements: a calibration and a pose for each file.

    Returns:
        The tables that were written, relative to the root.

    Raises:
        ValueError: if a placement is no rotation and translation, which tables cannot hold.
    """
    names = ("sample_data", "calibrated_sensor", "ego_pose")
    tables = {name: json.loads(table_path(root, version, name).read_bytes()) for name in names}
    calibration = {record["token"]: record for record in tables["calibrated_sensor"]}
    by_file = {record["filename"]: record for record in tables["sample_data"]}
    for placement in placements:
        if placement.file not in by_file:
            raise DataError(f"{root / version}/sample_data.json has no file {placement.file}")
        data = by_file[placement.file]
        token = hashlib.md5(f"{data['token']} corrupted".encode()).hexdigest()
        sensor = calibration[data["calibrated_sensor_token"]]["sensor_token"]
        tables["calibrated_sensor"].append(
            {"token": token, "sensor_token": sensor,
             "camera_intrinsic": placement.intrinsic.tolist(),
             **_pose(placement.ego_from_sensor, placement.file)}
        )  # fmt: skip
        tables["ego_pose"].append(
            {"token": token, "timestamp": placement.timestamp_us,
             **_pose(placement.global_from_ego, placement.file)}
        )  # fmt: skip
        data |= {
            "calibrated_sensor_token": token,
            "ego_pose_token": token,
            "timestamp": placement.timestamp_us,
        }
    for name, records in tables.items():
        (out / version / f"{name}.json").write_text(json.dumps(records))
    return [f"{version}/{name}.json" for name in names]


def _pose(matrix: NDArray[np.float64], file: str) -> dict[str, list[float]]:
    rotation = matrix[:3, :3]
    if np.abs(rotation @ rotation.T - np.eye(3)).max() > _ROUNDING or np.linalg.det(rotation) < 0:
        raise ValueError(
            f"the corruption gives {file} a mounting that is no rotation and translation, which "
            "nuScenes' tables cannot hold; leave out --as_published"
        )
    return {
        "translation": matrix[:3, 3].tolist(),
        "rotation": quaternion_from_rotation(rotation).tolist(),
    }
