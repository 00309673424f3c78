"""Falling snow on LiDAR: flakes in a beam take part of it, and of what is left returns less.

Model of Hahner et al., CVPR 2022. A point's beam, 3 mrad wide, lies in its ring's plane of flakes.
Flakes before the target take the part of the beam's angle that nearer ones left, the target the
rest. A reflector at r_j with power P_j and share s_j of the beam adds

    P_j s_j xi(r_j) / r_j^2 sin^2(pi (R - r_j) / (c tau))  for r_j <= R <= r_j + c tau = 3 m

to the received signal; P is 0.9 * 255 for a flake and i r^2 for the target. The sensor reports the
highest point of the sum, at its R less half a pulse. There the point goes, unless that is within
0.2 m of where it was. A dimmed point that stays is lost if it is weaker than ``noise_floor`` times
the weakest return of the ground at its range, or than that share of its own where it was no
stronger: so weak a return has been reported.

The sum of sin^2 of one period is a sine again, so the highest point between two edges is known in
closed form; the original looks for it on a grid of 0.1 m.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numba import njit
from numpy.typing import NDArray

from .flakes import BINS, PLANES, flake_planes
from .ground import GroundReturns, on_ground
from .lidar_fog import FULL_OVERLAP, NO_OVERLAP
from .sensors import SweepContext, SweepStep

_PULSE = 3.0  # c tau, metres
_WAVE = 2 * np.pi / _PULSE
_FLAKE_POWER = 0.9 * 255
_SAME_PLACE = 0.2  # metres
_MAX_FLAKES = 32  # in one beam; nearest first
_NUM_RINGS = 64  # rings that get a plane each; higher numbers share them

UNTOUCHED, DIMMED, SCATTERED = 0, 1, 2


@dataclass(frozen=True)
class LidarSnow(SweepStep):
    """Falling snow.

    Args:
        rate: snowfall rate over fall speed, mm/h / (m/s).
        noise_floor: weakest return that is still reported, over the weakest of the ground.
        divergence: of the beam, radians.
        as_published: the target behind a flake returns as if it were one, and the noise floor
            takes points that no flake touches too: a tenth of all even without snow.
    """

    rate: float
    noise_floor: float = 0.7
    divergence: float = 3e-3
    as_published: bool = False

    def is_identity(self) -> bool:
        """See :class:`SweepStep`."""
        return self.rate == 0

    def corrupt(self, points: NDArray[np.float32], context: SweepContext) -> NDArray[np.float32]:
        """See :class:`SweepStep`."""
        snowy, status = self.snowed(points, context.random())
        ground = on_ground(points, context.sweep.ego_from_lidar)
        returns = GroundReturns.of(points, ground)
        if returns is None:
            return snowy
        threshold = self.noise_floor * np.array(returns.floor_on_ground)
        return snowy[
            _reported(snowy, status, points, threshold, self.noise_floor, self.as_published)
        ]

    def snowed(
        self, points: NDArray[np.float32], random: np.random.Generator
    ) -> tuple[NDArray[np.float32], NDArray[np.uint8]]:
        """The cloud (P, 5) behind flakes, all points kept, and what became of each (P,)."""
        flakes = flake_planes(self.rate, self.divergence / 2)
        plane = random.permutation(np.arange(_NUM_RINGS) % PLANES)
        turn = random.random(_NUM_RINGS)
        return _snowed(
            points, plane, turn, flakes.start, flakes.distance, flakes.azimuth, flakes.half_width,
            self.divergence / 2, self.as_published,
        )  # fmt: skip


@njit(cache=True, nogil=True)
def _snowed(
    points,  # (P, 5)
    plane,  # (_NUM_RINGS,) of each ring
    turn,  # (_NUM_RINGS,) of the plane, in whole turns
    start, distance, azimuth, half_width,  # FlakePlanes
    half_beam,
    flake_powered,
):  # fmt: skip
    snowy, status = points.copy(), np.zeros(len(points), np.uint8)
    reflector = np.empty((_MAX_FLAKES + 1, 2))  # range, received peak
    wave = np.empty((_MAX_FLAKES + 1, 2))
    free = np.empty((_MAX_FLAKES + 1, 2))  # parts of the beam that no flake took yet
    for p in range(len(points)):
        x, y, z = np.float64(points[p, 0]), np.float64(points[p, 1]), np.float64(points[p, 2])
        r = np.sqrt(x * x + y * y + z * z)
        if not (r > 0 and np.isfinite(r)):
            continue
        ring = int(points[p, 4]) % _NUM_RINGS
        where = (np.arctan2(y, x) / (2 * np.pi) + turn[ring]) % 1.0 * BINS
        bin_ = min(int(where), BINS - 1)
        center = (where - bin_) * (2 * np.pi / BINS)
        free[0, 0], free[0, 1], parts = center - half_beam, center + half_beam, 1
        count, left = 0, 2 * half_beam
        cell = plane[ring] * BINS + bin_
        for e in range(start[cell], start[cell + 1]):
            if distance[e] >= r or parts == 0 or count == _MAX_FLAKES:
                break
            taken, parts = _take(
                free, parts, azimuth[e] - half_width[e], azimuth[e] + half_width[e]
            )
            if taken > 0:
                left -= taken
                reflector[count, 0] = distance[e]
                reflector[count, 1] = (
                    _FLAKE_POWER * taken / (2 * half_beam) * _gain(np.float64(distance[e]))
                )
                count += 1
        if count == 0:
            continue
        share = max(left, 0.0) / (2 * half_beam)
        power = _FLAKE_POWER if flake_powered else points[p, 3] * r * r
        reflector[count, 0], reflector[count, 1] = r, power * share * _gain(r)
        peak, place = _highest(reflector, wave, count + 1)
        seen = place - _PULSE / 2
        snowy[p, 3] = min(peak, 255.0)
        status[p] = DIMMED
        if abs(seen - r) >= _SAME_PLACE:
            status[p] = SCATTERED
            for axis in range(3):
                snowy[p, axis] = points[p, axis] * (seen / r)
    return snowy, status


@njit(cache=True, nogil=True)
def _gain(r):
    """xi(r) / r^2."""
    return min(max((r - NO_OVERLAP) / (FULL_OVERLAP - NO_OVERLAP), 0.0), 1.0) / (r * r)


@njit(cache=True, nogil=True)
def _take(free, parts, low, high):
    """Take an interval out of the free ones, in place: what was taken, and how many are left."""
    taken, i = 0.0, 0
    while i < parts:
        a, b = max(free[i, 0], low), min(free[i, 1], high)
        if a >= b:
            i += 1
            continue
        taken += b - a
        has_left, has_right = free[i, 0] < a, b < free[i, 1]
        if has_left and has_right and parts < len(free):
            free[parts, 0], free[parts, 1] = b, free[i, 1]
            parts += 1
            free[i, 1] = a
            i += 1
        elif has_left:
            free[i, 1] = a
            i += 1
        elif has_right:
            free[i, 0] = b
            i += 1
        else:
            parts -= 1
            free[i, 0], free[i, 1] = free[parts, 0], free[parts, 1]
    return taken, parts


@njit(cache=True, nogil=True)
def _highest(reflector, wave, count):
    """The highest value of the summed pulses, and its R.

    With w = 2 pi / 3 m a pulse is peak (1 - cos(w (R - r))) / 2. Pulses begin and end level, so the
    sum has its highest point where some of them add up to a cosine of that height.
    """
    for j in range(count):
        wave[j, 0], wave[j, 1] = np.cos(_WAVE * reflector[j, 0]), np.sin(_WAVE * reflector[j, 0])
    best, place = 0.0, reflector[count - 1, 0] + _PULSE / 2
    for edge in range(2 * count):  # between two edges the same pulses add up
        begin = reflector[edge // 2, 0] + edge % 2 * _PULSE
        end = np.inf
        total, cosine, sine = 0.0, 0.0, 0.0
        for j in range(count):
            r, half = reflector[j, 0], reflector[j, 1] / 2
            for border in (r, r + _PULSE):
                if begin < border < end:
                    end = border
            if r <= begin < r + _PULSE:
                total += half
                cosine += half * wave[j, 0]
                sine += half * wave[j, 1]
        height = total + np.sqrt(cosine * cosine + sine * sine)
        if height <= best:
            continue
        top = begin + (np.arctan2(-sine, -cosine) / _WAVE - begin) % _PULSE
        if top <= end + 1e-9:
            best, place = height, top
    return best, place


@njit(cache=True, nogil=True)
def _reported(snowy, status, points, threshold, noise_floor, as_published):
    """Which points are scattered, untouched or strong enough for their range."""
    kept = np.empty(len(points), np.bool_)
    for p in range(len(points)):
        x, y, z = np.float64(points[p, 0]), np.float64(points[p, 1]), np.float64(points[p, 2])
        r = np.sqrt(x * x + y * y + z * z)
        weakest = threshold[0] + (threshold[1] + threshold[2] * r) * r
        safe = status[p] == SCATTERED
        if not as_published:
            safe = safe or status[p] == UNTOUCHED
            weakest = min(weakest, noise_floor * points[p, 3])
        kept[p] = safe or snowy[p, 3] > weakest
    return kept
