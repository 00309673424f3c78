"""MultiCorrupt on LiDAR: 3 severities, key sweep and previous sweeps."""

from __future__ import annotations

from ..entry import Fidelity, Part, Touches
from ..lidar_drop import DropPoints, KeepRings

PARTS: dict[str, Part] = {
    "beamsreducing": Part(
        Touches.LIDAR,
        tuple(KeepRings(tuple(range(1, 32, step))) for step in (2, 4, 8)),
        Fidelity.SAME_ALGORITHM,
        "the same rings",
    ),
    "pointsreducing": Part(
        Touches.LIDAR,
        tuple(DropPoints(fraction) for fraction in (0.7, 0.8, 0.9)),
        Fidelity.SAME_ALGORITHM,
        "the same number of points; the original also shuffles their order",
    ),
}
