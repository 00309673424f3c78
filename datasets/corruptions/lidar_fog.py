"""Fog on LiDAR: attenuated hard returns, and soft returns from the fog itself.

Model of Hahner et al., ICCV 2021. A pulse of half-power width tau that meets a target at range r
returns i exp(-2 alpha r); the fog before it returns beta / beta0 * i r^2 * I(alpha), where

    I(alpha) = max over R of the integral over 0 <= t <= 2 tau of
               sin^2(pi t / (2 tau)) exp(-2 alpha s) xi(s) / s^2,  s = R - c t / 2, 0 < s <= r

and xi is the overlap of transmitter and receiver. The maximum is taken near the sensor, where xi
begins, so that I and its place are two numbers per alpha for every r beyond 4.7 m; nearer targets
cut the integral off. The sensor reports the stronger of the two.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numba import njit
from numpy.typing import NDArray

from .sensors import SweepContext, SweepStep

Points = NDArray[np.float32]

PULSE_WIDTH = 20e-9  # tau, seconds
LIGHT_SPEED = 299_792_458.0
NO_OVERLAP, FULL_OVERLAP = 0.9, 1.0  # xi rises linearly between, metres
BETA0 = 1e-6 / np.pi  # reflectivity of a hard target over pi
_RANGE_STEP = 200 / 1999  # grid of R, metres; the published tables' own
_TABLE_STEP = 0.05  # grid of r, metres
_TABLE_END = 5.0  # the integral no longer depends on r


def overlap(distance: NDArray[np.float64]) -> NDArray[np.float64]:
    """xi: share of the beam that the receiver sees at a distance in metres."""
    return ((distance - NO_OVERLAP) / (FULL_OVERLAP - NO_OVERLAP)).clip(0, 1)


@lru_cache(maxsize=32)
def soft_return(alpha: float) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """The largest integral for targets at 0, 0.05, ... 5 m, in seconds / m^2, and its range, m."""
    time = np.linspace(0, 2 * PULSE_WIDTH, 1001)
    ranges = np.arange(0, 9, _RANGE_STEP)
    s = ranges[:, None] - LIGHT_SPEED * time / 2
    seen = np.maximum(s, 1e-9)
    pulse = np.sin(np.pi * time / (2 * PULSE_WIDTH)) ** 2
    integrand = pulse * np.exp(-2 * alpha * seen) * overlap(seen) / seen**2
    targets = np.arange(0, _TABLE_END + _TABLE_STEP / 2, _TABLE_STEP)
    largest, place = np.empty(len(targets)), np.empty(len(targets))
    for k, target in enumerate(targets):
        # The pulse is zero at both ends, so the trapezoidal rule is a plain sum.
        integral = np.where(s <= target, integrand, 0).sum(axis=1) * time[1]
        largest[k], place[k] = integral.max(), ranges[integral.argmax()]
    return largest, place


@dataclass(frozen=True)
class LidarFog(SweepStep):
    """Fog: far and dark points are replaced by returns from the fog before them.

    Args:
        alpha: attenuation coefficient, 1/m, or several of which every frame draws one.
        beta: back-scattering coefficient, 1/(m sr).
        range_noise: the soft return's range is multiplied by r / U(r - n, r + n), metres.
        bounded: keep the divisor above r / 2, and returns before their target; the published noise
            throws targets nearer than ``range_noise`` anywhere, behind the sensor too.
        largest_intensity: of soft returns.
    """

    alpha: float | tuple[float, ...]
    beta: float
    range_noise: float = 10.0
    bounded: bool = True
    largest_intensity: float = 255.0

    def is_identity(self) -> bool:
        """See :class:`SweepStep`."""
        return self.beta == 0 and not np.any(self.alpha)

    def corrupt(self, points: Points, context: SweepContext) -> Points:
        """See :class:`SweepStep`."""
        alpha = self.alpha
        if isinstance(alpha, tuple):
            alpha = alpha[context.frame_random().integers(len(alpha))]
        uniform = context.random().random(len(points), np.float32)
        integral, place = soft_return(float(alpha))
        return _fogged(
            points, uniform, alpha, self.beta / BETA0 * integral, place,
            self.range_noise, self.bounded, self.largest_intensity,
        )  # fmt: skip


@njit(cache=True, nogil=True)
def _fogged(points, uniform, alpha, soft, place, range_noise, bounded, largest_intensity):
    fogged = points.copy()
    last = len(soft) - 1
    for p in range(len(points)):
        x, y, z = np.float64(points[p, 0]), np.float64(points[p, 1]), np.float64(points[p, 2])
        intensity = np.float64(points[p, 3])
        r = np.sqrt(x * x + y * y + z * z)
        if not r > 0:
            continue
        hard = np.rint(intensity * np.exp(-2 * alpha * r))
        k = min(int(r / _TABLE_STEP), last)
        echo = soft[k] * intensity * r * r
        if echo <= hard:
            fogged[p, 3] = hard
            continue
        low = r - range_noise
        if bounded:
            low = max(low, r / 2)
        distance = place[k] * r / (low + (r + range_noise - low) * uniform[p])
        if bounded:
            distance = min(distance, r)
        for axis in range(3):
            fogged[p, axis] = points[p, axis] * (distance / r)
        fogged[p, 3] = min(echo, largest_intensity)
    return fogged
