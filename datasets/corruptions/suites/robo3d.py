"""Robo3D: LiDAR, 3 severities. The original corrupts key sweeps only; here all sweeps are."""

from __future__ import annotations

from ..combine import Sequential
from ..entry import Fidelity, Part, Touches
from ..lidar_drop import DropPoints, KeepRings, LoseEchoes, LoseRings
from ..lidar_fog import LidarFog
from ..lidar_noise import PointNoise, RigidOffset
from ..lidar_snow import LidarSnow
from ..wet_ground import WetGround

_ALPHAS = (0.0, 0.005, 0.01, 0.02, 0.03, 0.06)
_BETAS = (0.008, 0.05, 0.2)
_SNOW = (0.5 / 2.0, 1.0 / 1.6, 2.5 / 1.6)  # mm/h / (m/s)
_FEWER_RINGS = (
    tuple(ring for ring in range(32) if ring % 4 != 1),
    tuple(range(0, 32, 2)),
    tuple(ring for ring in range(32) if ring not in {1 + int(1.33 * k) for k in range(24)}),
)


def _motion_blur(sigma: float) -> Sequential:
    jitter = (0.1 * sigma, 0.1 * sigma, 0.05 * sigma, 0.0)
    return Sequential(
        (RigidOffset(translation_std=sigma), PointNoise("normal", jitter, clip=3 * sigma))
    )


PARTS: dict[str, Part] = {
    "fog": Part(
        Touches.LIDAR,
        tuple(LidarFog(_ALPHAS, beta) for beta in _BETAS),
        Fidelity.SAME_ALGORITHM,
        "alpha drawn for every frame as in the original; as published, targets nearer than 10 m "
        "are thrown anywhere",
        tuple(LidarFog(_ALPHAS, beta, bounded=False, largest_intensity=1e9) for beta in _BETAS),
    ),
    "wet_ground": Part(
        Touches.LIDAR,
        tuple(
            WetGround(water, noise_floor=floor, relative_to="mean")
            for water, floor in ((0.2, 0.2), (1.0, 0.3), (1.2, 0.7))
        ),
        Fidelity.SAME_STATISTICS,
        "ground by a plane instead of labels; of it 94 / 79 / 24 % stay on the real key frame, the "
        "original keeps 95 / 81 / 29 % with a clean mask",
    ),
    "snow": Part(
        Touches.LIDAR,
        tuple(LidarSnow(rate) for rate in _SNOW),
        Fidelity.OWN_MODEL,
        "the original's flakes and pulses with the target's own power, ground found without "
        "labels, rings kept; as published, the target returns as a flake does and "
        "the noise floor takes untouched points too",
        tuple(LidarSnow(rate, as_published=True) for rate in _SNOW),
    ),
    "motion_blur": Part(
        Touches.LIDAR,
        tuple(_motion_blur(sigma) for sigma in (0.2, 0.3, 0.4)),
        Fidelity.SAME_ALGORITHM,
        "sigma of the two higher severities (0.3, 0.4 m) from the paper, not from the repository",
    ),
    "beam_missing": Part(
        Touches.LIDAR,
        tuple(LoseRings(count, 2, 28) for count in (8, 16, 24)),
        Fidelity.SAME_ALGORITHM,
        "different rings; as published, rings may be drawn twice, so that about 7 / 12 / 16 go",
        tuple(LoseRings(count, 2, 28, replacement=True) for count in (8, 16, 24)),
    ),
    "crosstalk": Part(
        Touches.LIDAR,
        tuple(PointNoise("normal", (3.0, 3.0, 3.0, 3.0), share) for share in (0.03, 0.07, 0.12)),
        Fidelity.SAME_ALGORITHM,
        "shares of the two higher severities (7, 12 %) from the paper, not from the repository",
    ),
    "incomplete_echo": Part(
        Touches.LIDAR,
        tuple(LoseEchoes(fraction) for fraction in (0.75, 0.85, 0.95)),
        Fidelity.SAME_STATISTICS,
        "points in annotated boxes instead of points with a vehicle's label",
    ),
    "cross_sensor": Part(
        Touches.LIDAR,
        tuple(Sequential((KeepRings(rings), DropPoints(stride=2))) for rings in _FEWER_RINGS),
        Fidelity.SAME_ALGORITHM,
        "points left on the real key frame: 13,008 / 8,672 / 4,336 as the original's",
    ),
}
