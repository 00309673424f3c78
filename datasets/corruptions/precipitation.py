"""Rain and snow-fall on LiDAR as drops drawn in each beam.

Model of Kilic et al. (LISA), 2021. Diameters follow N(D) = N0 exp(-Lambda D) per m^3 and mm, D in
mm. The medium attenuates by

    alpha = 1e-6 pi / 4 * integral of D^2 Q(D) N(D) dD,   1/m

and the particles above 0.05 mm in a beam of 3 mrad return F exp(-2 alpha r_j) min((D / d)^2, 1) /
r_j^2, d the beam's diameter at r_j and F = ((n - 1) / (n + 1))^2. A target of reflectivity i in
0..1 returns i exp(-2 alpha r) / r^2. The sensor sees the strongest return that reaches
0.9 / (120 m)^2, or nothing; a target's range gets noise of sd 0.09 / sqrt(2 p / p_min).

Q is van de Hulst's extinction efficiency (Light Scattering by Small Particles, 1957, 11.2) with the
edge term 2 x^(-2/3): within 2 % of Mie's from x = 50 on, and smaller drops hold no area here.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import numpy as np
from numba import njit
from numpy.typing import NDArray

from .sensors import SweepContext, SweepStep

WAVELENGTH = 905e-9  # metres
SMALLEST = 0.05  # diameter of particles that are drawn, mm
DIVERGENCE = 3e-3  # of the beam, radians
_BLIND = 0.9  # metres before the sensor where nothing is seen
_WEAKEST = 0.9 / 120**2  # power that is still detected
_RANGE_NOISE = 0.09  # metres


@dataclass(frozen=True)
class Particles:
    """What falls: sizes, refractive index and what follows from them."""

    density: float  # N0, 1 / (m^3 mm)
    slope: float  # Lambda, 1/mm
    index: float  # refractive

    @staticmethod
    def of(kind: Literal["rain", "snow"], rate: float) -> Particles:
        """Marshall and Palmer 1948 for rain, Gunn and Marshall 1958 for snow; rate in mm/h."""
        if kind == "rain":
            return Particles(8000.0, 4.1 * rate**-0.21, 1.328)
        return Particles(7600.0 * rate**-0.87, 2.55 * rate**-0.48, 1.3031)

    @property
    def reflectivity(self) -> float:
        """F."""
        return ((self.index - 1) / (self.index + 1)) ** 2

    @property
    def attenuation(self) -> float:
        """alpha, 1/m."""
        diameter = np.geomspace(1e-4, 20 / self.slope, 4000)  # mm
        area = diameter**2 * extinction(np.pi * diameter * 1e-3 / WAVELENGTH, self.index)
        values = area * self.density * np.exp(-self.slope * diameter)
        integral = ((values[1:] + values[:-1]) / 2 * np.diff(diameter)).sum()
        return float(1e-6 * np.pi / 4 * integral)

    @property
    def per_volume(self) -> float:
        """Particles above the smallest diameter, 1/m^3."""
        return self.density * float(np.exp(-self.slope * SMALLEST)) / self.slope

    @property
    def reach(self) -> float:
        """Range beyond which one particle in 1e9 is large enough to be detected, metres."""
        largest = SMALLEST + np.log(1e9) / self.slope
        width = DIVERGENCE * 1e3  # mm per metre
        return float((self.reflectivity * (largest / width) ** 2 / _WEAKEST) ** 0.25)


def extinction(size: NDArray[np.float64], index: float) -> NDArray[np.float64]:
    """Q of spheres, by size parameter x = pi D / wavelength."""
    phase = 2 * size * (index - 1)
    small = phase < 1e-3  # the difference below would lose its digits
    phase = np.where(small, 1.0, phase)
    wave = 2 - 4 / phase * np.sin(phase) + 4 / phase**2 * (1 - np.cos(phase))
    return np.where(small, 0.0, wave + np.where(size > 1, 2 * size ** (-2 / 3), 0.0))


@lru_cache(maxsize=64)
def _attenuation(kind: Literal["rain", "snow"], rate: float) -> float:
    return Particles.of(kind, rate).attenuation


@dataclass(frozen=True)
class Precipitation(SweepStep):
    """Rain or snow-fall of a rate.

    Args:
        kind: ``"rain"`` or ``"snow"``.
        rate: mm/h (of melted water for snow).
        full_scale: the intensity that stands for reflectivity 1. With 1, as published for
            nuScenes, every target outshines every drop.
    """

    kind: Literal["rain", "snow"]
    rate: float
    full_scale: float = 255.0

    def __post_init__(self) -> None:
        if self.kind not in ("rain", "snow") or self.rate < 0 or self.full_scale <= 0:
            raise ValueError(
                f'kind is "{self.kind}", rate {self.rate:g}, full_scale {self.full_scale:g}; give '
                '"rain" or "snow", a rate from 0 and a positive scale'
            )

    def is_identity(self) -> bool:
        """See :class:`SweepStep`."""
        return self.rate == 0

    def corrupt(self, points: NDArray[np.float32], context: SweepContext) -> NDArray[np.float32]:
        """See :class:`SweepStep`."""
        fallen, status = self.fallen(points, context.random())
        return fallen[status != LOST]

    def fallen(
        self, points: NDArray[np.float32], random: np.random.Generator
    ) -> tuple[NDArray[np.float32], NDArray[np.uint8]]:
        """The cloud (P, 5) in the rain, all points kept, and what became of each (P,)."""
        particles = Particles.of(self.kind, self.rate)
        seen = np.maximum(np.linalg.norm(points[:, :3].astype(np.float64), axis=1), 1e-6)
        # Particles lie uniformly in a cone, so those within reach can be drawn by themselves.
        within = np.nan_to_num(np.minimum(seen, particles.reach))
        mean = particles.per_volume * np.pi / 3 * within**3 * np.tan(DIVERGENCE / 2) ** 2
        count = random.poisson(mean)
        first = np.concatenate([[0], np.cumsum(count)])
        return _fallen(
            points, seen, within, first, random.random(first[-1]), random.random(first[-1]),
            random.standard_normal(len(points)), _attenuation(self.kind, self.rate),
            particles.slope, particles.reflectivity, self.full_scale,
        )  # fmt: skip


DIMMED, SCATTERED, LOST = 0, 1, 2


@njit(cache=True, nogil=True)
def _fallen(
    points,  # (P, 5)
    ranges, within,  # (P,) of the target; where particles are drawn
    first,  # (P + 1,) where each beam's particles begin
    place, size,  # (E,) uniform draws
    noise,  # (P,) normal draws
    alpha, slope, reflectivity, full_scale,
):  # fmt: skip
    fallen, status = points.copy(), np.zeros(len(points), np.uint8)
    for p in range(len(points)):
        r = ranges[p]
        dimmed = points[p, 3] / full_scale * np.exp(-2 * alpha * r)
        power, best, where = dimmed / (r * r), 0.0, 0.0
        for e in range(first[p], first[p + 1]):
            at = within[p] * place[e] ** (1 / 3)
            if at <= _BLIND:
                continue
            diameter = (SMALLEST - np.log1p(-size[e]) / slope) * 1e-3
            filled = min((diameter / (at * np.tan(DIVERGENCE))) ** 2, 1.0)
            echo = reflectivity * np.exp(-2 * alpha * at) * filled / (at * at)
            if echo > best:
                best, where = echo, at
        if max(power, best) < _WEAKEST:
            status[p] = LOST
        elif best > power:
            status[p] = SCATTERED
            fallen[p, 3] = min(best * where * where * full_scale, 255.0)
        else:
            where = r + noise[p] * _RANGE_NOISE / np.sqrt(2 * power / _WEAKEST)
            fallen[p, 3] = dimmed * full_scale
        if status[p] != LOST:
            for axis in range(3):
                fallen[p, axis] = points[p, axis] * (where / r)
    return fallen, status
