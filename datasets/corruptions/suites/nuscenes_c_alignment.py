"""nuScenes-C on calibration and timing: 5 severities. The truth stays where it was."""

from __future__ import annotations

from ..calibration import CalibrationDrift, ProjectionNoise
from ..entry import Fidelity, Part, Touches
from ..motion_compensation import MotionCompensationError
from ..stale import LateSensors

_LINEAR = (0.004, 0.008, 0.012, 0.016, 0.020)
_OFFSET = (0.04, 0.08, 0.12, 0.16, 0.20)
_RECORDINGS = (2, 4, 6, 8, 10)

PARTS: dict[str, Part] = {
    "motion_compensation": Part(
        Touches.LIDAR,
        tuple(
            MotionCompensationError(translation, rotation)
            for translation, rotation in zip(
                (0.02, 0.04, 0.06, 0.08, 0.10), (0.002, 0.004, 0.006, 0.008, 0.010)
            )
        ),
        Fidelity.SAME_STATISTICS,
        "every sweep by itself, the next pose extrapolated; the original takes the stack as one",
    ),
    "spatial_misalignment": Part(
        Touches.CALIBRATION,
        tuple(CalibrationDrift(angle, metres) for angle, metres in zip(_LINEAR, _OFFSET)),
        Fidelity.OWN_MODEL,
        "cameras turn and move by the original's sizes, as radians and metres; as published, the "
        "noise is on the entries of LiDAR-to-image matrices",
        tuple(ProjectionNoise(linear, offset) for linear, offset in zip(_LINEAR, _OFFSET)),
    ),
    "temporal_misalignment": Part(
        Touches.CAMERA | Touches.LIDAR | Touches.TIME,
        tuple(LateSensors(n, n) for n in _RECORDINGS),
        Fidelity.OWN_MODEL,
        "sweeps as in the original, but the whole stack; images are key images, of the right age "
        "on average; as published, one sweep, and images one recording old at every severity",
        tuple(LateSensors(n, 1, single=True) for n in _RECORDINGS),
    ),
}
