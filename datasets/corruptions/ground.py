"""Which LiDAR points lie on the ground, and what the ground returns, without labels.

The vehicle's frame has the ground at z = 0, so the calibration gives a first plane; a few rounds of
least squares on the points near it follow the slope. A cloud of 35,000 points takes a millisecond.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numba import njit
from numpy.typing import NDArray

_BANDS = (0.6, 0.4, 0.25, 0.15)  # metres from the plane; the last decides what is ground
_REACH = 50.0  # metres around the sensor where the plane is fitted
_LARGEST_SLOPE = np.tan(np.deg2rad(6.0))
_LEAST_POINTS = 50
_RANGE_BINS = 50  # of the noise floor, from 10 to 70 m
_DARKEST = 5.0  # intensity / cosine; what is below says nothing about the noise floor


def ground_plane(
    points: NDArray[np.float32], ego_from_lidar: NDArray[np.float64]
) -> NDArray[np.float64]:
    """(3,) a, b, c of the ground z = a x + b y + c in the sensor's frame.

    Args:
        points: (P, 5) in the sensor's frame.
        ego_from_lidar: (4, 4) the sensor's mounting.
    """
    normal, offset = ego_from_lidar[2, :3], ego_from_lidar[2, 3]
    first = -np.array([normal[0], normal[1], offset]) / normal[2]
    plane = first
    for band in _BANDS[:-1]:
        sums, right, count = _normal_equations(points, plane, band)
        if count < _LEAST_POINTS:
            return first
        # The prior holds what few or one-sided points leave open.
        prior = 1e-3 * np.diag(np.diag(sums)) + 1e-9 * np.eye(3)
        plane = np.linalg.solve(sums + prior, right + prior @ first)
        slope = plane[:2] - first[:2]
        if np.hypot(*slope) > _LARGEST_SLOPE or abs(plane[2] - first[2]) > _BANDS[0]:
            return first
    return plane


def on_ground(
    points: NDArray[np.float32], ego_from_lidar: NDArray[np.float64]
) -> NDArray[np.bool_]:
    """(P,) which points lie within 0.15 m of the ground and below the sensor."""
    return _near_plane(points, ground_plane(points, ego_from_lidar), _BANDS[-1])


@njit(cache=True, nogil=True)
def _normal_equations(points, plane, band):
    sums, right, count = np.zeros((3, 3)), np.zeros(3), 0
    row = np.ones(3)
    for p in range(len(points)):
        row[0], row[1], z = points[p, 0], points[p, 1], np.float64(points[p, 2])
        distance = np.sqrt(row[0] * row[0] + row[1] * row[1])
        if not distance < _REACH:
            continue
        if abs(z - plane[0] * row[0] - plane[1] * row[1] - plane[2]) > band:
            continue
        count += 1
        # Rings thin out with distance: by itself the nearest one would outweigh all others.
        for i in range(3):
            right[i] += distance * row[i] * z
            for j in range(3):
                sums[i, j] += distance * row[i] * row[j]
    return sums, right, count


@njit(cache=True, nogil=True)
def _near_plane(points, plane, band):
    near = np.empty(len(points), np.bool_)
    for p in range(len(points)):
        x, y, z = np.float64(points[p, 0]), np.float64(points[p, 1]), np.float64(points[p, 2])
        # Incidence near or above 90 degrees says nothing about the ground's reflectivity.
        below = z < 0.25 * plane[2] and z < 0
        near[p] = below and abs(z - plane[0] * x - plane[1] * y - plane[2]) <= band
    return near


@dataclass(frozen=True)
class GroundReturns:
    """What ground points return, as linear functions of range.

    Both are fitted to intensity / cos(incidence), the incidence that of a horizontal plane.
    """

    floor: tuple[float, float]  # constant and slope of the weakest returns: the noise floor
    mean: tuple[float, float]  # constant and slope of all returns
    # Constant, slope and curvature of floor * cos(incidence) over range.
    floor_on_ground: tuple[float, float, float]

    @staticmethod
    def of(points: NDArray[np.float32], ground: NDArray[np.bool_]) -> GroundReturns | None:
        """Fit to a cloud; None where there is too little ground to tell.

        Args:
            points: (P, 5) in the sensor's frame.
            ground: (P,) which of them are ground; none may be above the sensor.
        """
        if ground.sum() < _LEAST_POINTS:
            return None
        r, cosine, level = _ground_levels(points, ground)
        bins = ((r - 10) / 60 * _RANGE_BINS).astype(np.int64)
        inside = (r >= 10) & (bins < _RANGE_BINS) & (level > _DARKEST)
        lowest = np.full(_RANGE_BINS, np.inf)
        np.minimum.at(lowest, bins[inside], level[inside])
        occupied = np.flatnonzero(np.isfinite(lowest))
        mean = floor = _line(r, level)
        if len(occupied) > 3:
            floor = _line(10 + (occupied + 0.5) * 60 / _RANGE_BINS, lowest[occupied])
        powers = r[:, None] ** np.arange(3)
        weakest = cosine * (floor[0] + floor[1] * r)
        curve = np.linalg.lstsq(powers.T @ powers, powers.T @ weakest, rcond=None)[0]
        return GroundReturns(floor, mean, (float(curve[0]), float(curve[1]), float(curve[2])))


@njit(cache=True, nogil=True)
def _ground_levels(points, ground):
    """Range, cosine of incidence and intensity / cosine of ground points, (G,) each."""
    count = ground.sum()
    r, cosine, level = np.empty(count), np.empty(count), np.empty(count)
    g = 0
    for p in range(len(points)):
        if ground[p]:
            x, y, z = np.float64(points[p, 0]), np.float64(points[p, 1]), np.float64(points[p, 2])
            r[g] = np.sqrt(x * x + y * y + z * z)
            cosine[g] = -z / r[g]
            level[g] = points[p, 3] / cosine[g]
            g += 1
    return r, cosine, level


def _line(x: NDArray[np.float64], y: NDArray[np.float64]) -> tuple[float, float]:
    slope = np.cov(x, y, bias=True)[0, 1] / max(x.var(), 1e-12)
    return float(y.mean() - slope * x.mean()), float(slope)
