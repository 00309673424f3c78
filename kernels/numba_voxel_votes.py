"""The class of every voxel by the vote of the points in it, on the CPU, on numpy arrays."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from .threads import compiled_in_order


def add_votes(
    votes: NDArray[np.int32],
    points: NDArray[np.floating],
    label: NDArray[np.uint8],
    voxels_from_points: NDArray[np.float64],
) -> None:
    """Count each point for its class in its voxel.

    Args:
        votes: (X, Y, Z, K), changed in place.
        points: (P, 3); those outside the volume, or not finite, are left out.
        label: (P,) class below K.
        voxels_from_points: (4, 4) affine, to fractional voxels.
    """
    matrix = np.ascontiguousarray(voxels_from_points, np.float64)
    _add_votes(votes, np.ascontiguousarray(points), np.ascontiguousarray(label), matrix)


def most_voted(votes: NDArray[np.int32], rank: NDArray[np.int64], nothing: int) -> NDArray:
    """The class of each voxel: of the classes of highest rank there, the one with most points.

    Of equal counts the lower class wins.

    Args:
        votes: (X, Y, Z, K) from :func:`add_votes`.
        rank: (K,) from 0; a class of a higher rank wins against any number of points of lower ones.
        nothing: the value of voxels without a point.

    Returns:
        (X, Y, Z) uint8.
    """
    found = np.empty(votes.shape[:3], np.uint8)
    _most_voted(votes.reshape(-1, votes.shape[3]), rank, nothing, found.reshape(-1))
    return found


@compiled_in_order
def _add_votes(votes, points, label, m):
    nx, ny, nz = votes.shape[:3]
    for p in range(len(points)):
        x, y, z = np.float64(points[p, 0]), np.float64(points[p, 1]), np.float64(points[p, 2])
        u = m[0, 0] * x + m[0, 1] * y + m[0, 2] * z + m[0, 3]
        v = m[1, 0] * x + m[1, 1] * y + m[1, 2] * z + m[1, 3]
        w = m[2, 0] * x + m[2, 1] * y + m[2, 2] * z + m[2, 3]
        if 0 <= u < nx and 0 <= v < ny and 0 <= w < nz:
            votes[int(u), int(v), int(w), label[p]] += 1


@compiled_in_order
def _most_voted(votes, rank, nothing, found):
    for voxel in range(len(votes)):
        best, best_rank, best_count = nothing, -1, 0
        for k in range(votes.shape[1]):
            count = votes[voxel, k]
            if count == 0:
                continue
            if rank[k] > best_rank or (rank[k] == best_rank and count > best_count):
                best, best_rank, best_count = k, rank[k], count
        found[voxel] = best
