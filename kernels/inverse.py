"""Inverses of small matrices in closed form.

``numpy.linalg.inv`` may wake OpenBLAS's threads even for a 4x4 matrix (seen with the OpenBLAS
0.3.23 of numpy 1.26); they then spin for 0.1 s on the cores that the rest of a frame needs.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray


def inverse_3x3(matrix: ArrayLike) -> NDArray[np.float64]:
    """Inverse of (..., 3, 3) matrices, float64.

    Raises:
        numpy.linalg.LinAlgError: if a matrix has none, or holds what is not finite.
    """
    a, b, c = np.moveaxis(np.asarray(matrix, np.float64), -2, 0)
    with np.errstate(invalid="ignore", over="ignore"):  # of numbers that are refused below
        columns = [_cross(b, c), _cross(c, a), _cross(a, b)]
        determinant = (a * columns[0]).sum(-1)
    if not (np.isfinite(determinant) & (determinant != 0)).all():
        raise np.linalg.LinAlgError("a matrix has no inverse")
    return np.stack(columns, -1) / determinant[..., None, None]


def inverse_affine(matrix: ArrayLike) -> NDArray[np.float64]:
    """Inverse of (..., 4, 4) matrices whose last row is 0, 0, 0, 1, float64.

    Raises:
        numpy.linalg.LinAlgError: as above, of the (..., 3, 3) parts.
    """
    matrix = np.asarray(matrix, np.float64)
    linear = inverse_3x3(matrix[..., :3, :3])
    inverse = np.zeros_like(matrix)
    inverse[..., :3, :3] = linear
    inverse[..., :3, 3] = -(linear * matrix[..., None, :3, 3]).sum(-1)
    inverse[..., 3, 3] = 1
    return inverse


def _cross(a: NDArray, b: NDArray) -> NDArray:
    # numpy.cross is ten times slower on a few vectors.
    x, y, z = np.moveaxis(a, -1, 0)
    u, v, w = np.moveaxis(b, -1, 0)
    return np.stack([y * w - z * v, z * u - x * w, x * v - y * u], -1)
