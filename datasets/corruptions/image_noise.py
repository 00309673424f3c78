"""Noise of camera sensors."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from .byte_noise import (
    alias_table,
    draw_bytes,
    impulse_law,
    normal_law,
    poisson_normal_law,
    uniform_law,
)
from .fast_random import draw_key
from .sensors import CameraContext, CameraStep

_LEVELS = np.arange(256) / 255


@dataclass(frozen=True)
class PixelNoise(CameraStep):
    """Noise that is independent for every pixel and colour.

    nuScenes-C (and imagecorruptions): normal and uniform 0.08, 0.12, 0.18, 0.26, 0.38; impulse
    0.03, 0.06, 0.09, 0.17, 0.27.

    Args:
        law: ``"normal"``; ``"uniform"``; ``"impulse"``, values that become black or white.
        level: standard deviation, or reach to both sides, of values 0..1; or share of values.
    """

    law: Literal["normal", "uniform", "impulse"]
    level: float

    def __post_init__(self) -> None:
        if self.law not in ("normal", "uniform", "impulse"):
            raise ValueError(f'law is "{self.law}"; give "normal", "uniform" or "impulse"')
        if self.level < 0 or (self.law == "impulse" and self.level > 1):
            raise ValueError(f"level is {self.level:g}; give a value from 0, a share up to 1")

    def is_identity(self) -> bool:
        """See :class:`CameraStep`."""
        return self.level == 0

    def corrupt(self, image: NDArray[np.uint8], context: CameraContext) -> NDArray[np.uint8]:
        """See :class:`CameraStep`."""
        return draw_bytes(image, _noise_table(self.law, self.level), draw_key(context.random()))


@lru_cache(maxsize=32)
def _noise_table(law: str, level: float) -> NDArray[np.uint32]:
    if law == "impulse":
        return alias_table(impulse_law(level))
    return alias_table((normal_law if law == "normal" else uniform_law)(_LEVELS, level))


@dataclass(frozen=True)
class Dark(CameraStep):
    """A scene at night: less light, few photons, read-out noise.

    The image is stretched to the whole range of values, raised to ``gamma`` and scaled; then
    Poisson(value * photons) / photons, then N(0, read_noise).
    MultiCorrupt: scale 0.6, 0.4, 0.3; photons 250, 120, 50; noise 0.008, 0.018, 0.026.
    RoboBEV: 0.4, 0.3, 0.2; 120, 50, 30; 0.018, 0.026, 0.038.

    Args:
        scale: brightest value of the dark image, 0..1.
        photons: photons of a value of 1.
        read_noise: standard deviation, of values 0..1.
        gamma: exponent.
    """

    scale: float
    photons: float
    read_noise: float
    gamma: float = 2.0

    def __post_init__(self) -> None:
        if not 0 <= self.scale <= 1 or self.photons <= 0 or self.read_noise < 0 or self.gamma <= 0:
            raise ValueError(
                f"scale {self.scale:g}, photons {self.photons:g}, read_noise {self.read_noise:g}, "
                f"gamma {self.gamma:g}; give 0 <= scale <= 1, noise from 0 and the others above 0"
            )

    def corrupt(self, image: NDArray[np.uint8], context: CameraContext) -> NDArray[np.uint8]:
        """See :class:`CameraStep`."""
        table = _dark_table(self, int(image.min(initial=255)), int(image.max(initial=0)))
        return draw_bytes(image, table, draw_key(context.random()))

    def value(self, darkest: int, brightest: int) -> NDArray[np.float64]:
        """(256,) expected new value, 0..1, of each byte of an image with this range."""
        stretched = (np.arange(256) - darkest) / max(brightest - darkest, 1)
        return self.scale * np.clip(stretched, 0, 1) ** self.gamma


@lru_cache(maxsize=64)
def _dark_table(dark: Dark, darkest: int, brightest: int) -> NDArray[np.uint32]:
    value = dark.value(darkest, brightest)
    return alias_table(poisson_normal_law(value, dark.photons, dark.read_noise))
