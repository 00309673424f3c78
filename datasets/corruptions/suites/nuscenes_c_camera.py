"""nuScenes-C on cameras: 5 severities."""

from __future__ import annotations

from ..combine import Sequential
from ..entry import Fidelity, Part, Touches
from ..image_blur import DrivingBlur
from ..image_fog import PlasmaFog
from ..image_noise import PixelNoise
from ..image_rain import ImageRain
from ..image_tone import GreyVeil
from ..sun import SunGlare
from .imagecorruptions import FOG, SNOW

_DULL = GreyVeil(0.3, exposure=0.7)
_RAIN = ((0.01, 0.06), (0.06, 0.10), (0.10, 0.15), (0.15, 0.20), (0.20, 0.25))
_NOISE = (0.08, 0.12, 0.18, 0.26, 0.38)
_EXACT_LAW = "values are drawn from their exact law, which is tested against numpy's draws"
ZOOM = (0.02, 0.04, 0.06, 0.08, 0.10)
LINE = (16, 32, 48, 64, 80)

PARTS: dict[str, Part] = {
    "snow": Part(
        Touches.CAMERA,
        tuple(Sequential((snow, _DULL)) for snow in SNOW),
        Fidelity.SAME_STATISTICS,
        "the same formulas; the share of flakes is tested against the normal law",
    ),
    "rain": Part(
        Touches.CAMERA,
        tuple(Sequential((ImageRain(density), _DULL)) for density in _RAIN),
        Fidelity.OWN_MODEL,
        "streaks by the same parameters as imgaug's layer, whose blending is not documented",
    ),
    "fog": Part(
        Touches.CAMERA,
        tuple(
            Sequential((PlasmaFog(*level), GreyVeil(grey)))
            for level, grey in zip(FOG, (0.1, 0.2, 0.3, 0.4, 0.5))
        ),
        Fidelity.SAME_STATISTICS,
        "the same formulas; the cloud's octaves are tested against diamond-square in float64",
    ),
    "sunlight": Part(
        Touches.CAMERA | Touches.LIDAR,
        tuple(
            SunGlare(sigma, share)
            for sigma, share in zip((30, 40, 50, 60, 70), (0.004, 0.008, 0.012, 0.016, 0.020))
        ),
        Fidelity.SAME_STATISTICS,
        "the same spot and lost points, previous sweeps included; the flare's place is our own",
    ),
    "gaussian_camera": Part(
        Touches.CAMERA,
        tuple(PixelNoise("normal", level) for level in _NOISE),
        Fidelity.SAME_STATISTICS,
        _EXACT_LAW,
    ),
    "uniform_camera": Part(
        Touches.CAMERA,
        tuple(PixelNoise("uniform", level) for level in _NOISE),
        Fidelity.SAME_STATISTICS,
        _EXACT_LAW,
    ),
    "impulse_camera": Part(
        Touches.CAMERA,
        tuple(PixelNoise("impulse", level) for level in (0.03, 0.06, 0.09, 0.17, 0.27)),
        Fidelity.SAME_STATISTICS,
        _EXACT_LAW,
    ),
    "motion_blur": Part(
        Touches.CAMERA,
        tuple(DrivingBlur(zoom, line) for zoom, line in zip(ZOOM, LINE)),
        Fidelity.SAME_ALGORITHM,
        "front and back zoom, sides draw a line; as published, the other way round",
        tuple(DrivingBlur(zoom, line, swapped=True) for zoom, line in zip(ZOOM, LINE)),
    ),
}
