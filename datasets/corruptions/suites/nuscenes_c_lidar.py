"""nuScenes-C on LiDAR: 5 severities.

The original applies its steps to the stack of ten sweeps as if it were one; here every sweep is
corrupted by itself, so that shares and noise mean what they say.
"""

from __future__ import annotations

from math import log

from ..combine import Sequential
from ..entry import Fidelity, Part, Touches
from ..lidar_drop import CropAzimuth, Cutout, DropPoints
from ..lidar_fog import LidarFog
from ..lidar_noise import PointNoise
from ..lidar_snow import LidarSnow
from ..precipitation import Precipitation
from ..wet_ground import WetGround

_RAIN = (0.20, 0.73, 1.5625, 3.125, 7.29)  # mm/h
_SNOW = (0.2778, 1.786, 5.0, 7.5, 12.5)  # mm/h / (m/s)
_ALPHAS = (0.005, 0.01, 0.02, 0.03, 0.06)
_NOISE = (0.02, 0.04, 0.06, 0.08, 0.10)
_ONE_IN = (30, 25, 20, 15, 10)
_CROSSTALK = (0.004, 0.008, 0.012, 0.016, 0.020)
_HOLES = (2, 3, 5, 7, 10)
_POSITION_ONLY = "the noise is on x, y, z in metres; as published, the same number on intensity too"


def _noise(law, level: float, columns: int = 3, share: float = 1.0) -> PointNoise:
    x, y, z, intensity = (level if column < columns else 0.0 for column in range(4))
    return PointNoise(law, (x, y, z, intensity), share)


PARTS: dict[str, Part] = {
    "snow": Part(
        Touches.LIDAR,
        tuple(Sequential((WetGround(1.0), LidarSnow(rate))) for rate in _SNOW),
        Fidelity.OWN_MODEL,
        "wet ground, then flakes and pulses of LiDAR_snow_sim with the target's own power; as "
        "published, the target returns as a flake does, and the wet ground's noise floor is read "
        "off the snowy cloud, so that what is lost does not follow the severity",
        tuple(Sequential((LidarSnow(rate, as_published=True), WetGround(1.0))) for rate in _SNOW),
    ),
    "rain": Part(
        Touches.LIDAR,
        tuple(Precipitation("rain", rate) for rate in _RAIN),
        Fidelity.SAME_STATISTICS,
        "15 to 17 % of the real key frame's points are lost as in LISA; extinction in closed form "
        "instead of Mie's series; as published, intensities are not scaled, and almost nothing "
        "changes",
        tuple(Precipitation("rain", rate, full_scale=1.0) for rate in _RAIN),
    ),
    "fog": Part(
        Touches.LIDAR,
        tuple(LidarFog(alpha, 0.046 * alpha / log(20), 1.0) for alpha in _ALPHAS),
        Fidelity.SAME_ALGORITHM,
        "beta follows alpha (0.046 over the visibility); as published, it stays that of alpha 0.06",
        tuple(LidarFog(alpha, 9.21e-4, 1.0, bounded=False) for alpha in _ALPHAS),
    ),
    "density": Part(
        Touches.LIDAR,
        tuple(DropPoints(fraction) for fraction in (0.06, 0.12, 0.18, 0.24, 0.30)),
        Fidelity.SAME_ALGORITHM,
        "share of every sweep instead of the stack",
    ),
    "cutout": Part(
        Touches.LIDAR,
        tuple(Cutout(holes) for holes in _HOLES),
        Fidelity.SAME_ALGORITHM,
        "distance in metres; as published, over intensity and ring too",
        tuple(Cutout(holes, with_intensity=True) for holes in _HOLES),
    ),
    "crosstalk": Part(
        Touches.LIDAR,
        tuple(PointNoise("normal", (3.0, 3.0, 3.0, 3.0), share) for share in _CROSSTALK),
        Fidelity.SAME_ALGORITHM,
        "on x, y, z and intensity; the original's noise on the time lag is left out",
    ),
    "fov_lost": Part(
        Touches.LIDAR,
        tuple(CropAzimuth(half_angle) for half_angle in (105, 90, 75, 60, 45)),
        Fidelity.SAME_ALGORITHM,
        "points left on the real key frame as the original's: 17.5 / 14.6 / 11.9 / 9.1 / 6.7 k",
    ),
    "gaussian_lidar": Part(
        Touches.LIDAR,
        tuple(_noise("normal", level) for level in _NOISE),
        Fidelity.SAME_ALGORITHM,
        _POSITION_ONLY,
        tuple(_noise("normal", level, 4) for level in _NOISE),
    ),
    "uniform_lidar": Part(
        Touches.LIDAR,
        tuple(_noise("uniform", level) for level in _NOISE),
        Fidelity.SAME_ALGORITHM,
        _POSITION_ONLY,
        tuple(_noise("uniform", level, 4) for level in _NOISE),
    ),
    "impulse_lidar": Part(
        Touches.LIDAR,
        tuple(_noise("impulse", 0.1, share=1 / n) for n in _ONE_IN),
        Fidelity.SAME_ALGORITHM,
        _POSITION_ONLY,
        tuple(_noise("impulse", 0.1, 4, 1 / n) for n in _ONE_IN),
    ),
}
