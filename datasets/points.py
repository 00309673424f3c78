"""Merge a frame's LiDAR sweeps into one cloud."""

from __future__ import annotations

import numpy as np
from numba import njit
from numpy.typing import NDArray

from .frame import Frame
from .geometry import inverse


def merge_sweeps(
    frame: Frame,
    max_sweeps: int | None = None,
    vehicle_reach: float = 1.0,
    target_from_ego: NDArray[np.float64] | None = None,
    clear_key_sweep: bool = True,
) -> NDArray[np.float32]:
    """The points of the key sweep and of previous ones, as if all were seen at the key time.

    Each sweep goes its own way through the global frame (sensor → ego → global → ego at the key
    time), so the vehicle's motion is taken out; objects that move leave a trail.

    Args:
        frame: the frame; it may have no sweep.
        max_sweeps: sweeps to use at most, the key sweep included; None for all.
        vehicle_reach: returns with |x| and |y| below it, in metres in the sensor's frame, come
            from the vehicle itself and are left out. 1 is the devkit's rule; 0 keeps all.
        target_from_ego: (4, 4) to give points in another frame than the ego frame at key time.
        clear_key_sweep: whether ``vehicle_reach`` applies to the key sweep too.

    Returns:
        (P, 5): x, y, z, intensity 0..255, time lag (key time minus the sweep's, seconds). Points
        that are not finite are left out.
    """
    sweeps = frame.sweeps if max_sweeps is None else frame.sweeps[:max_sweeps]
    clouds = [sweep.load() for sweep in sweeps]
    merged = np.empty((sum(map(len, clouds)), 5), np.float32)
    target_from_global = inverse(frame.global_from_ego)
    if target_from_ego is not None:
        target_from_global = target_from_ego @ target_from_global
    count = 0
    for i, (sweep, points) in enumerate(zip(sweeps, clouds)):
        target_from_lidar = target_from_global @ sweep.global_from_ego @ sweep.ego_from_lidar
        lag = (frame.timestamp_us - sweep.timestamp_us) * 1e-6
        reach = vehicle_reach if i > 0 or clear_key_sweep else 0.0
        count = _append_points(merged, count, points, target_from_lidar, reach, lag)
    return merged[:count]


@njit(cache=True, nogil=True)
def _append_points(merged, count, points, matrix, vehicle_reach, lag):
    """Filter, move and write one sweep in a single pass; returns the new number of points.

    In float64: global coordinates are kilometres, where float32 resolves a tenth of a millimetre.
    """
    for p in range(len(points)):
        x, y, z = np.float64(points[p, 0]), np.float64(points[p, 1]), np.float64(points[p, 2])
        if abs(x) < vehicle_reach and abs(y) < vehicle_reach:
            continue
        if not np.isfinite(x + y + z):
            continue
        for axis in range(3):
            row = matrix[axis]
            merged[count, axis] = row[0] * x + row[1] * y + row[2] * z + row[3]
        merged[count, 3] = points[p, 3]
        merged[count, 4] = lag
        count += 1
    return count
