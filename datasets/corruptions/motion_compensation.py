"""Errors in taking the vehicle's motion out of a revolution."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numba import njit
from numpy.typing import NDArray

from ..frame import Frame, LidarSweep
from ..geometry import inverse
from .calibration import rotation_of_vector
from .sensors import SweepContext, SweepStep


@dataclass(frozen=True)
class MotionCompensationError(SweepStep):
    """The poses that a revolution's slices were corrected by are noisy.

    A revolution is cut into slices of azimuth. With T_k the pose of slice k, from this revolution's
    to the next one's (linear and slerp), points become (T_k + E_k) T_k^-1 p, where E_k is
    N(0, translation) on the last column and N(0, rotation) on the entries of the 3 x 3 block.
    nuScenes-C: 100 slices; 0.02, 0.04, 0.06, 0.08, 0.10 m; 0.002, 0.004, 0.006, 0.008, 0.010.

    The next pose is the motion since the previous sweep once more; the last sweep of a stack takes
    that of the one before it.

    Args:
        translation: metres.
        rotation: of matrix entries; about radians.
        slices: of a revolution.
    """

    translation: float
    rotation: float
    slices: int = 100

    def is_identity(self) -> bool:
        """See :class:`SweepStep`."""
        return self.translation == 0 == self.rotation

    def corrupt(self, points: NDArray[np.float32], context: SweepContext) -> NDArray[np.float32]:
        """See :class:`SweepStep`."""
        random = context.random()
        poses = interpolated(np.eye(4), sweep_motion(context.frame, context.sweep), self.slices)
        noisy = poses.copy()
        noisy[:, :3, :3] += random.normal(0, self.rotation, (self.slices, 3, 3))
        noisy[:, :3, 3] += random.normal(0, self.translation, (self.slices, 3))
        return _moved_by_slice(points, noisy @ inverse(poses))


def sweep_motion(frame: Frame, sweep: LidarSweep) -> NDArray[np.float64]:
    """(4, 4) the sensor's motion from one sweep to the next; none where there is one sweep."""
    i = next(i for i, s in enumerate(frame.sweeps) if s is sweep)
    if len(frame.sweeps) < 2:
        return np.eye(4)
    newer, older = frame.sweeps[i : i + 2] if i + 1 < len(frame.sweeps) else frame.sweeps[i - 1 :]
    world_from_older = older.global_from_ego @ older.ego_from_lidar
    return inverse(world_from_older) @ newer.global_from_ego @ newer.ego_from_lidar


def interpolated(first: NDArray, second: NDArray, count: int) -> NDArray[np.float64]:
    """(count, 4, 4) poses at k / count of the way: linear in translation, slerp in rotation."""
    turn = first[:3, :3].T @ second[:3, :3]
    sine = np.array([turn[2, 1] - turn[1, 2], turn[0, 2] - turn[2, 0], turn[1, 0] - turn[0, 1]]) / 2
    angle = np.arctan2(np.linalg.norm(sine), (np.trace(turn) - 1) / 2)
    vector = sine / max(np.linalg.norm(sine), 1e-12) * angle
    poses = np.tile(np.eye(4), (count, 1, 1))
    for k in range(count):
        poses[k, :3, :3] = first[:3, :3] @ rotation_of_vector(vector * k / count)
    way = np.arange(count)[:, None] / count
    poses[:, :3, 3] = first[:3, 3] + way * (second[:3, 3] - first[:3, 3])
    return poses


@njit(cache=True, nogil=True)
def _moved_by_slice(points, matrices):
    """Move each point by the matrix of its slice; slices go once around from -pi."""
    moved, count = points.copy(), len(matrices)
    for p in range(len(points)):
        x, y, z = np.float64(points[p, 0]), np.float64(points[p, 1]), np.float64(points[p, 2])
        turn = (np.arctan2(y, x) + np.pi) / (2 * np.pi)
        if not np.isfinite(turn + z):
            continue
        m = matrices[min(int(turn * count), count - 1)]
        for axis in range(3):
            moved[p, axis] = m[axis, 0] * x + m[axis, 1] * y + m[axis, 2] * z + m[axis, 3]
    return moved
