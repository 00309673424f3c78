"""From occupancy logits to voxels (see ``OccupancyOutput``)."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ...datasets.nuscenes.classes import FREE
from ...kernels.threads import compiled, in_parallel


class OccupiedVoxels(NamedTuple):
    """Decoded occupancy of one sample."""

    semantics: NDArray[np.uint8]  # (X, Y, Z) index into OCCUPANCY_CLASSES, FREE where nothing is
    probability: NDArray[np.float32]  # (X, Y, Z) of what `semantics` says


def decode_occupancy(
    occupied: NDArray, classes: NDArray, threshold: float, num_threads: int | None = None
) -> OccupiedVoxels:
    """The class of every voxel, and how likely it is.

    Args:
        occupied: (X, Y, Z) float32 logits.
        classes: (X / S, Y / S, Z, K) float32 logits of what is there; S voxels share one.
        threshold: a voxel at least this likely to be occupied is.
        num_threads: threads to use, by default all cores of this process.
    """
    semantics = np.empty(occupied.shape, np.uint8)
    probability = np.empty(occupied.shape, np.float32)
    stride = occupied.shape[0] // classes.shape[0]
    args = occupied, classes, stride, np.float32(threshold), np.uint8(FREE), semantics, probability
    in_parallel(lambda a, b: _decode(*args, a, b), len(occupied), num_threads, smallest=8)
    return OccupiedVoxels(semantics, probability)


@compiled
def _decode(occupied, classes, stride, threshold, free, semantics, probability, low, high):
    _, Y, Z = occupied.shape
    one = np.float32(1)
    for i in range(low, high):
        for j in range(Y):
            for k in range(Z):
                there = one / (one + np.exp(-occupied[i, j, k]))
                if not there >= threshold:
                    semantics[i, j, k] = free
                    probability[i, j, k] = one - there
                    continue
                logits = classes[i // stride, j // stride, k]
                best = 0
                for c in range(1, len(logits)):
                    if logits[c] > logits[best]:
                        best = c
                total = np.float32(0)
                for c in range(len(logits)):
                    total += np.exp(logits[c] - logits[best])
                semantics[i, j, k] = best
                probability[i, j, k] = there / total
