"""MultiCorrupt on cameras, and stale data of both sensors: 3 severities."""

from __future__ import annotations

from ..combine import Sequential
from ..entry import Fidelity, Part, Touches
from ..image_blur import LineBlur
from ..image_fog import HazeFog
from ..image_noise import Dark
from ..image_snow import ImageSnow
from ..image_tone import Brighten
from ..sensor_loss import LoseImages
from ..stale import StaleImages, StaleSweeps

_SNOW = ((0.3, 5, 0.90, 7, 7, 0.90), (0.4, 4, 0.85, 8, 8, 0.85), (0.5, 3, 0.80, 10, 10, 0.80))
_PROBABILITY = (0.2, 0.4, 0.6)

PARTS: dict[str, Part] = {
    "motionblur": Part(
        Touches.CAMERA,
        tuple(LineBlur(15, sigma) for sigma in (6, 10, 13)),
        Fidelity.SAME_ALGORITHM,
        "tested against the sum of moved images in float64",
    ),
    "fog": Part(
        Touches.CAMERA,
        tuple(HazeFog(w, haze) for w, haze in ((2, 0.0005), (3, 0.001), (4, 0.002))),
        Fidelity.SAME_STATISTICS,
        "the same formulas; the cloud's octaves are tested against diamond-square in float64",
    ),
    "snow": Part(
        Touches.CAMERA,
        tuple(ImageSnow(*values, gain=0.9) for values in _SNOW),
        Fidelity.SAME_STATISTICS,
        "the same formulas; the share of flakes is tested against the normal law",
    ),
    "brightness": Part(
        Touches.CAMERA,
        tuple(Brighten(offset) for offset in (0.5, 0.6, 0.7)),
        Fidelity.SAME_ALGORITHM,
        "tested against the conversion to HSV and back in float64",
    ),
    "dark": Part(
        Touches.CAMERA,
        tuple(
            Dark(scale, photons, noise)
            for scale, photons, noise in ((0.6, 250, 0.008), (0.4, 120, 0.018), (0.3, 50, 0.026))
        ),
        Fidelity.SAME_STATISTICS,
        "values are drawn from their exact law, which is tested against numpy's Poisson and normal",
    ),
    "missingcamera": Part(
        Touches.CAMERA,
        tuple(LoseImages(probability) for probability in _PROBABILITY),
        Fidelity.SAME_ALGORITHM,
        "images that stay are not compressed again",
    ),
    "temporalmisalignment": Part(
        Touches.CAMERA | Touches.LIDAR | Touches.TIME,
        tuple(Sequential((StaleImages(p), StaleSweeps(p))) for p in _PROBABILITY),
        Fidelity.SAME_ALGORITHM,
        "a scene's first frame has nothing older; the original may take another scene's",
    ),
}
