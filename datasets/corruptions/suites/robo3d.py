"""Robo3D: LiDAR, 3 severities. The original corrupts key sweeps only; here all sweeps are."""

from __future__ import annotations

from ..combine import Sequential
from ..entry import Fidelity, Part, Touches
from ..lidar_drop import DropPoints, KeepRings

_CROSS_SENSOR_RINGS = (
    tuple(ring for ring in range(32) if ring % 4 != 1),
    tuple(range(0, 32, 2)),
    tuple(ring for ring in range(32) if ring not in {1 + int(1.33 * k) for k in range(24)}),
)

PARTS: dict[str, Part] = {
    "cross_sensor": Part(
        Touches.LIDAR,
        tuple(
            Sequential((KeepRings(rings), DropPoints(stride=2))) for rings in _CROSS_SENSOR_RINGS
        ),
        Fidelity.SAME_ALGORITHM,
        "points left on the real key frame: 13,008 / 8,672 / 4,336 as the original's",
    ),
}
