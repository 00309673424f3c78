"""MultiCorrupt on LiDAR: 3 severities, key sweep and previous sweeps."""

from __future__ import annotations

from ..combine import Sequential
from ..entry import Fidelity, Part, Touches
from ..lidar_drop import DropPoints, KeepRings
from ..lidar_fog import LidarFog
from ..lidar_noise import PointNoise, RigidOffset
from ..lidar_snow import LidarSnow

_FOG = ((0.02, 0.008), (0.03, 0.008), (0.06, 0.05))  # alpha, beta
_SNOW = (0.5 / 1.2, 2.5 / 1.6, 1.5 / 0.4)  # mm/h / (m/s)


def _motion_blur(sigma: float, per_sweep: bool = False) -> Sequential:
    jitter = (0.15 * sigma, 0.20 * sigma, 0.12 * sigma, 0.0)
    return Sequential(
        (
            RigidOffset(translation_std=sigma, per_sweep=per_sweep),
            PointNoise("normal", jitter, clip=3 * sigma),
        )
    )


def _misaligned(degrees: float, probability: float, per_sweep: bool = False) -> RigidOffset:
    return RigidOffset(
        (degrees, degrees, degrees), (2.0, 0.0, 0.0), 0.0, probability, per_sweep=per_sweep
    )


_MISALIGNMENT = ((1.0, 0.2), (2.0, 0.4), (3.0, 0.6))  # degrees, probability

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
    "motionblur": Part(
        Touches.LIDAR,
        tuple(_motion_blur(sigma) for sigma in (0.06, 0.10, 0.13)),
        Fidelity.SAME_ALGORITHM,
        "one shift for all sweeps of a frame; as published, one for each",
        tuple(_motion_blur(sigma, per_sweep=True) for sigma in (0.06, 0.10, 0.13)),
    ),
    "fog": Part(
        Touches.LIDAR,
        tuple(LidarFog(alpha, beta) for alpha, beta in _FOG),
        Fidelity.SAME_ALGORITHM,
        "fog points of the real key frame: 1,760 / 2,823 / 7,918, the original 1,760 / 2,823 / "
        "7,922; as published, targets nearer than 10 m are thrown anywhere",
        tuple(LidarFog(alpha, beta, bounded=False, largest_intensity=1e9) for alpha, beta in _FOG),
    ),
    "snow": Part(
        Touches.LIDAR,
        tuple(LidarSnow(rate) for rate in _SNOW),
        Fidelity.OWN_MODEL,
        "the original's flakes and pulses with the target's own power, ground found without "
        "labels and no focal table of another sensor; as published, the target returns as a flake "
        "does and the noise floor takes untouched points too; 2.4 / 3.1 / 3.7 % of the real key "
        "frame's points then scatter (the original: 2.7 / 3.2 / 3.9), 15 % are lost (11)",
        tuple(LidarSnow(rate, as_published=True) for rate in _SNOW),
    ),
    "spatialmisalignment": Part(
        Touches.LIDAR,
        tuple(_misaligned(*level) for level in _MISALIGNMENT),
        Fidelity.SAME_ALGORITHM,
        "one coin for all sweeps of a frame; as published, one for each",
        tuple(_misaligned(*level, per_sweep=True) for level in _MISALIGNMENT),
    ),
}
