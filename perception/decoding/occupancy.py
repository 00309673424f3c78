"""From occupancy logits to voxels (see ``OccupancyOutput``)."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ...datasets.nuscenes.classes import FREE
from ...kernels.numba_exp import exp32
from ...kernels.threads import compiled_in_order, in_parallel


class OccupiedVoxels(NamedTuple):
    """Decoded occupancy of one sample."""

    semantics: NDArray[np.uint8]  # (X, Y, Z) index into OCCUPANCY_CLASSES, FREE where nothing is
    probability: NDArray[np.float32]  # (X, Y, Z) of what `semantics` says


def decode_occupancy(
    occupied: NDArray, classes: NDArray, threshold: float, num_threads: int | None = None
) -> OccupiedVoxels:
    """The class of every voxel, and how likely it is.

    Args:
        occupied: (Z, S, S, X / S, Y / S) float32 logits.
        classes: (Z, K, X / S, Y / S) float32 logits of what is there.
        threshold: a voxel at least this likely to be occupied is.
        num_threads: threads to use, by default all cores of this process.
    """
    Z, S, _, nx, ny = occupied.shape
    semantics = np.empty((nx * S, ny * S, Z), np.uint8)
    probability = np.empty(semantics.shape, np.float32)
    args = occupied, classes, np.float32(threshold), np.uint8(FREE), semantics, probability
    in_parallel(lambda a, b: _decode(*args, a, b), nx, num_threads, smallest=4)
    return OccupiedVoxels(semantics, probability)


@compiled_in_order
def _decode(occupied, classes, threshold, free, semantics, probability, low, high):
    """Rows along y, which are vector code, and then voxels in their order."""
    Z, S, _, _, ny = occupied.shape
    one, there = np.float32(1), np.empty((S, S, ny), np.float32)
    label, share = np.empty(ny, np.uint8), np.empty(ny, np.float32)
    found = np.empty((S, S, Z, ny), np.uint8)
    likely = np.empty(found.shape, np.float32)
    for i in range(low, high):
        for z in range(Z):
            most = np.float32(0)
            for a in range(S):
                for b in range(S):
                    for j in range(ny):
                        there[a, b, j] = one / (one + exp32(-occupied[z, a, b, i, j]))
                    for j in range(ny):
                        most = max(most, there[a, b, j])
            if most >= threshold:
                _classify(classes, z, i, label, share)
            for a in range(S):
                for b in range(S):
                    for j in range(ny):
                        p = there[a, b, j]
                        found[a, b, z, j] = label[j] if p >= threshold else free
                        likely[a, b, z, j] = p * share[j] if p >= threshold else one - p
        for a in range(S):
            for j in range(ny):
                for b in range(S):
                    for z in range(Z):
                        semantics[i * S + a, j * S + b, z] = found[a, b, z, j]
                        probability[i * S + a, j * S + b, z] = likely[a, b, z, j]


@compiled_in_order
def _classify(classes, z, i, label, share):
    """Best class of every place in a row, and its softmax."""
    K, N = classes.shape[1], classes.shape[3]
    best, total = np.empty(N, np.float32), np.zeros(N, np.float32)
    for j in range(N):
        best[j], label[j] = classes[z, 0, i, j], 0
    for k in range(1, K):
        for j in range(N):
            value, before = classes[z, k, i, j], best[j]
            best[j] = value if value > before else before
            label[j] = np.uint8(k) if value > before else label[j]
    for k in range(K):
        for j in range(N):
            total[j] += exp32(classes[z, k, i, j] - best[j])
    for j in range(N):
        share[j] = np.float32(1) / total[j]
