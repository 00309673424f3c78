"""RoboBEV: cameras, 3 severities (easy, mid, hard)."""

from __future__ import annotations

from ..entry import Fidelity, Part, Touches
from ..image_blur import LineBlur
from ..image_fog import PlasmaFog
from ..image_noise import Dark
from ..image_tone import Brighten, Posterise
from ..sensor_loss import CrashCameras, LoseImages
from .imagecorruptions import FOG, SNOW

PARTS: dict[str, Part] = {
    "CameraCrash": Part(
        Touches.CAMERA,
        tuple(CrashCameras(count) for count in (2, 4, 5)),
        Fidelity.SAME_ALGORITHM,
        "that many cameras, drawn for every scene; as published, drawn with replacement and once",
        tuple(
            CrashCameras(count, with_replacement=True, same_everywhere=True) for count in (2, 4, 5)
        ),
    ),
    "FrameLost": Part(
        Touches.CAMERA,
        tuple(LoseImages(count / 6) for count in (2, 4, 5)),
        Fidelity.SAME_ALGORITHM,
        "the same probabilities",
    ),
    "MotionBlur": Part(
        Touches.CAMERA,
        tuple(LineBlur(radius, sigma) for radius, sigma in ((15, 5), (15, 12), (20, 15))),
        Fidelity.SAME_ALGORITHM,
        "tested against the sum of moved images in float64",
    ),
    "ColorQuant": Part(
        Touches.CAMERA,
        tuple(Posterise(bits) for bits in (4, 3, 2)),
        Fidelity.SAME_ALGORITHM,
        "the same bits",
    ),
    "Brightness": Part(
        Touches.CAMERA,
        tuple(Brighten(offset) for offset in (0.2, 0.4, 0.5)),
        Fidelity.SAME_ALGORITHM,
        "tested against the conversion to HSV and back in float64",
    ),
    "LowLight": Part(
        Touches.CAMERA,
        tuple(
            Dark(scale, photons, noise)
            for scale, photons, noise in ((0.4, 120, 0.018), (0.3, 50, 0.026), (0.2, 30, 0.038))
        ),
        Fidelity.SAME_STATISTICS,
        "the values its tables give, which skip the mildest; drawn from the exact law",
    ),
    "Fog": Part(
        Touches.CAMERA,
        tuple(PlasmaFog(*FOG[level - 1]) for level in (2, 4, 5)),
        Fidelity.SAME_STATISTICS,
        "the same formulas; the cloud's octaves are tested against diamond-square in float64",
    ),
    "Snow": Part(
        Touches.CAMERA,
        SNOW[:3],
        Fidelity.SAME_STATISTICS,
        "the same formulas, grey from RGB; the original takes BGR for RGB",
    ),
}
