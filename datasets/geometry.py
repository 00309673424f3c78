"""Rigid transforms in numpy: 4x4 float64, named ``target_from_source``, quaternions w, x, y, z."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ..kernels.inverse import inverse_affine

Array = NDArray[np.float64]


def rotation_from_quaternion(quaternion: ArrayLike) -> Array:
    """(..., 4) quaternion w, x, y, z of any non-zero length -> (..., 3, 3) rotation matrix."""
    q = np.asarray(quaternion, np.float64)
    w, x, y, z = np.moveaxis(q / np.linalg.norm(q, axis=-1, keepdims=True), -1, 0)
    rows = [
        [1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)],
        [2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)],
        [2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)],
    ]
    return np.stack([np.stack(row, -1) for row in rows], -2)


def quaternion_from_rotation(rotation: ArrayLike) -> Array:
    """(3, 3) rotation matrix -> quaternion w, x, y, z with w >= 0."""
    m = np.asarray(rotation, np.float64)
    # Bar-Itzhack 2000: the eigenvector of the largest eigenvalue; no branches, no cancellation.
    k = np.array(
        [
            [m[0, 0] + m[1, 1] + m[2, 2], m[2, 1] - m[1, 2], m[0, 2] - m[2, 0], m[1, 0] - m[0, 1]],
            [0, m[0, 0] - m[1, 1] - m[2, 2], m[0, 1] + m[1, 0], m[0, 2] + m[2, 0]],
            [0, 0, m[1, 1] - m[0, 0] - m[2, 2], m[1, 2] + m[2, 1]],
            [0, 0, 0, m[2, 2] - m[0, 0] - m[1, 1]],
        ]
    )
    q = np.linalg.eigh(k, UPLO="U")[1][:, -1]
    return q if q[0] >= 0 else -q


def quaternion_from_yaw(yaw: ArrayLike) -> Array:
    """(...,) yaw about +z, radians -> (..., 4) quaternion w, x, y, z."""
    half = np.asarray(yaw, np.float64) / 2
    zero = np.zeros_like(half)
    return np.stack([np.cos(half), zero, zero, np.sin(half)], -1)


def transform(rotation: ArrayLike, translation: ArrayLike) -> Array:
    """(3, 3) matrix or (4,) quaternion, and (3,) metres -> (4, 4)."""
    rotation = np.asarray(rotation, np.float64)
    matrix = np.eye(4)
    matrix[:3, :3] = rotation_from_quaternion(rotation) if rotation.shape == (4,) else rotation
    matrix[:3, 3] = translation
    return matrix


def inverse(matrix: ArrayLike) -> Array:
    """Inverse of (..., 4, 4) transforms; scale and reflection are allowed.

    Raises:
        numpy.linalg.LinAlgError: if one has no inverse.
    """
    return inverse_affine(matrix)


def apply(matrix: Array, points: NDArray) -> NDArray:
    """Move points: (4, 4) and (..., 3) -> (..., 3), float64."""
    # Not with BLAS: its threads would go on spinning (see kernels/inverse.py), and it is slower.
    x, y, z = np.moveaxis(np.asarray(points, np.float64), -1, 0)
    moved = np.empty((*x.shape, 3))
    for i, (along_x, along_y, along_z, shift) in enumerate(matrix[:3]):
        moved[..., i] = x * along_x + y * along_y + z * along_z + shift
    return moved


def wrap_angle(angle: NDArray) -> NDArray:
    """Radians to [-pi, pi)."""
    return (angle + np.pi) % (2 * np.pi) - np.pi


def yaw_of(matrix: ArrayLike) -> Array:
    """Heading of the x axis of (..., 3, 3) or (..., 4, 4), from +x towards +y, radians."""
    m = np.asarray(matrix)
    return angle_of(m[..., 1, 0], m[..., 0, 0])


def angle_of(sine: NDArray, cosine: NDArray) -> NDArray[np.float64]:
    """(...,) angles in [-pi, pi] from sine and cosine, or any two with their ratio and signs."""
    # Copies: numpy 1.26's arctan2 of strided arrays rounds by where they happen to lie in memory.
    return np.arctan2(
        np.array(sine, np.float64, order="C"), np.array(cosine, np.float64, order="C")
    )
