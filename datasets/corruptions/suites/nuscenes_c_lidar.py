"""nuScenes-C on LiDAR: 5 severities. The original applies them to the stack of sweeps at once."""

from __future__ import annotations

from ..entry import Fidelity, Part, Touches
from ..lidar_drop import DropPoints

PARTS: dict[str, Part] = {
    "density": Part(
        Touches.LIDAR,
        tuple(DropPoints(fraction) for fraction in (0.06, 0.12, 0.18, 0.24, 0.30)),
        Fidelity.SAME_ALGORITHM,
        "share of every sweep instead of the stack",
    ),
}
