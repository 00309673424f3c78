"""A film of water on the ground: the beam is mirrored away, and weak returns are lost.

Model of Hahner et al., CVPR 2022. With theta the incidence on a flat earth and intensities in
0..1, the dry ground's reflectivity is rho = i / (cos(theta) P(r)), P 15 times the linear fit of
i / cos(theta) over range. Light enters the film, is scattered below it and leaves it again:

    T = T_aw rho' T_wa / (1 - rho' R_wa),  rho' = clip(rho, 0.05, 1)

by Fresnel's power coefficients, the larger of the two polarisations. The share f = water depth /
depth of the pavement's texture of the ground is wet: i' = P cos(theta) ((1 - f) rho + f T / theta),
never more than i. The point is lost if i' is not above ``noise_floor`` times what dry ground at
that range and incidence returns, at least or on average.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numba import njit
from numpy.typing import NDArray

from .ground import GroundReturns, on_ground
from .sensors import SweepContext, SweepStep

_AIR, _WATER = 1.0003, 1.33  # refractive indices
_EMITTED = 15.0  # peak power over the mean return of dry ground


@dataclass(frozen=True)
class WetGround(SweepStep):
    """Rain or melted snow on the road.

    Args:
        water: depth of the water, millimetres.
        pavement: depth of the pavement's texture, which it fills, millimetres.
        noise_floor: weakest return that is still reported, over that of dry ground.
        relative_to: dry ground's ``"weakest"`` or ``"mean"`` return.
        least_points: with fewer ground points the sweep stays as it is.
    """

    water: float
    pavement: float = 1.2
    noise_floor: float = 0.7
    relative_to: Literal["weakest", "mean"] = "weakest"
    least_points: int = 1000

    def is_identity(self) -> bool:
        """See :class:`SweepStep`."""
        return self.water == 0

    def corrupt(self, points: NDArray[np.float32], context: SweepContext) -> NDArray[np.float32]:
        """See :class:`SweepStep`."""
        ground = on_ground(points, context.sweep.ego_from_lidar)
        return self.wetted(points, ground)

    def wetted(self, points: NDArray[np.float32], ground: NDArray[np.bool_]) -> NDArray[np.float32]:
        """The cloud (P, 5) with the ground points (P,) wet; the others stay as they are."""
        returns = GroundReturns.of(points, ground)
        if ground.sum() < self.least_points or returns is None:
            return points
        share = min(self.water / self.pavement, 1.0)
        floor = returns.floor if self.relative_to == "weakest" else returns.mean
        wet, kept = _wetted(points, ground, share, self.noise_floor, returns.mean, floor)
        return wet[:kept]


@njit(cache=True, nogil=True)
def _wetted(points, ground, share, noise_floor, mean, floor):
    wet = np.empty_like(points)
    kept = 0
    for p in range(len(points)):
        wet[kept] = points[p]
        if ground[p]:
            x, y, z = np.float64(points[p, 0]), np.float64(points[p, 1]), np.float64(points[p, 2])
            r = np.sqrt(x * x + y * y + z * z)
            cosine = min(-z / r, 1.0)
            dry = points[p, 3] / 255.0
            power = max(_EMITTED * (mean[0] + mean[1] * r) / 255.0, 1e-6)
            rho = dry / (cosine * power)
            theta = np.arccos(cosine)
            film = _transmitted(theta, min(max(rho, 0.05), 1.0)) / max(theta, 1e-3)
            after = power * cosine * ((1 - share) * rho + share * film)
            after = min(max(after, 0.0), dry)
            if after * 255 <= noise_floor * (floor[0] + floor[1] * r) * cosine:
                continue
            wet[kept, 3] = after * 255
        kept += 1
    return wet, kept


@njit(cache=True, nogil=True)
def _transmitted(theta, rho):
    """Share of the power that comes back through the film, the better polarisation's."""
    inner = np.arcsin(_AIR / _WATER * np.sin(theta))
    a, b = _AIR * np.cos(theta), _WATER * np.cos(inner)
    c, d = _AIR * np.cos(inner), _WATER * np.cos(theta)
    best = 0.0
    # Power reflected at the surface, the same from both sides, s- and p-polarised.
    for reflected in (((a - b) / (a + b)) ** 2, ((c - d) / (c + d)) ** 2):
        through = 1 - reflected
        best = max(best, through * rho * through / (1 - rho * reflected))
    return best
