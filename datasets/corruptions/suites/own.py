"""Our own corruptions: what the published benchmarks lack. 3 severities."""

from __future__ import annotations

from math import radians
from typing import Literal

from ..calibration import CalibrationDrift
from ..depth_fog import DepthFog
from ..entry import Fidelity, Part, Touches
from ..lidar_fog import LidarFog
from ..stale import LateSensors, StaleImages

_ALPHA = (0.02, 0.03, 0.06)  # 1/m; one sees about 3 / alpha far
_DRIFT = ((0.5, 0.02), (1.0, 0.05), (2.0, 0.10))  # degrees, metres


def _drift(sensors: Literal["cameras", "lidar"]) -> tuple[CalibrationDrift, ...]:
    return tuple(
        CalibrationDrift(radians(degrees), metres, sensors, "scene") for degrees, metres in _DRIFT
    )


# The camera's part comes first, because its distances are the clean LiDAR's.
CAMERA_PARTS: dict[str, Part] = {
    "fog": Part(
        Touches.CAMERA,
        tuple(DepthFog(alpha) for alpha in _ALPHA),
        Fidelity.OWN_MODEL,
        "Koschmieder's law over the LiDAR's distances, as thick as for the LiDAR",
    ),
    "camera_drift": Part(
        Touches.CALIBRATION,
        _drift("cameras"),
        Fidelity.OWN_MODEL,
        "each camera's mounting is wrong throughout a scene",
    ),
    "lidar_drift": Part(
        Touches.CALIBRATION,
        _drift("lidar"),
        Fidelity.OWN_MODEL,
        "the LiDAR's mounting is wrong throughout a scene",
    ),
    "camera_delay": Part(
        Touches.CAMERA | Touches.TIME,
        tuple(StaleImages(1.0, key_frames) for key_frames in (1, 2, 3)),
        Fidelity.OWN_MODEL,
        "all images are 0.5, 1 or 1.5 s old",
    ),
    "lidar_delay": Part(
        Touches.LIDAR | Touches.TIME,
        tuple(LateSensors(sweeps, 0) for sweeps in (2, 4, 8)),
        Fidelity.OWN_MODEL,
        "all sweeps are 0.1, 0.2 or 0.4 s old",
    ),
}
LIDAR_PARTS: dict[str, Part] = {
    "fog": Part(
        Touches.LIDAR,
        tuple(LidarFog(alpha, 0.046 * alpha / 3) for alpha in _ALPHA),
        Fidelity.OWN_MODEL,
        "back-scatter 0.046 over the visibility of 3 / alpha",
    ),
}
