"""Randomness that depends on what is processed, never on who processes it or when."""

from __future__ import annotations

import hashlib

import numpy as np


def generator(seed: int, token: str, step: str) -> np.random.Generator:
    """A generator that is the same for the same (seed, sample token, step name) everywhere.

    Args:
        seed: the run's seed; training adds the epoch through ``step``.
        token: sample token.
        step: name of the processing step, for instance ``"bev_augmentation/epoch3"``.
    """
    digest = hashlib.blake2b(f"{seed}\0{token}\0{step}".encode(), digest_size=16).digest()
    return np.random.Generator(np.random.PCG64(int.from_bytes(digest, "little")))


def epoch_seed(seed: int, epoch: int) -> int:
    """The seed that steps get: the run's seed mixed with the epoch; evaluation is epoch 0."""
    return int(generator(seed, str(epoch), "epoch_seed").integers(2**63))
