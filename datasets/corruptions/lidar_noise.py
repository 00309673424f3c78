"""Points in the wrong place: noise on each, one offset for all."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from .lidar_drop import random_subset
from .sensors import SweepContext, SweepStep

Points = NDArray[np.float32]


@dataclass(frozen=True)
class PointNoise(SweepStep):
    """Noise on the columns x, y, z, intensity of points; intensity stays within 0 and 255.

    Args:
        law: ``"normal"``; ``"uniform"`` from -1 to 1; ``"impulse"``, -1 or 1.
        scale: factor on the draws for x, y, z (metres) and intensity.
        share: of the points that are moved, drawn at random.
        clip: largest size of a change; null for none.
    """

    law: Literal["normal", "uniform", "impulse"]
    scale: tuple[float, float, float, float]
    share: float = 1.0
    clip: float | None = None

    def __post_init__(self) -> None:
        if self.law not in ("normal", "uniform", "impulse") or not 0 <= self.share <= 1:
            raise ValueError(
                f'law is "{self.law}", share {self.share:g}; give "normal", "uniform" or '
                '"impulse", and 0 <= share <= 1'
            )

    def is_identity(self) -> bool:
        """See :class:`SweepStep`."""
        return self.share == 0 or not any(self.scale)

    def corrupt(self, points: Points, context: SweepContext) -> Points:
        """See :class:`SweepStep`."""
        random, count = context.random(), len(points)
        chosen = random_subset(count, self.share, random) if self.share < 1 else slice(None)
        columns = max(i for i, s in enumerate(self.scale) if s) + 1
        size = (round(count * self.share), columns)
        noise = self._draws(random, size) * np.array(self.scale[:columns], np.float32)
        if self.clip is not None:
            noise = noise.clip(-self.clip, self.clip)
        noisy = points.copy()
        noisy[chosen, :columns] += noise
        if columns == 4:
            noisy[chosen, 3] = noisy[chosen, 3].clip(0, 255)
        return noisy

    def _draws(self, random: np.random.Generator, size: tuple[int, int]) -> NDArray[np.float32]:
        if self.law == "normal":
            return random.standard_normal(size, np.float32)
        if self.law == "uniform":
            return 2 * random.random(size, np.float32) - 1
        return 2 * random.integers(0, 2, size, np.int8).astype(np.float32) - 1


@dataclass(frozen=True)
class RigidOffset(SweepStep):
    """Turn and shift the cloud as a whole against its calibration, which stays as it is.

    All sweeps of a frame get the same offset: the sensor is not where it is thought to be.

    Args:
        rotation: about x, y and z, degrees; the matrix is Rx Ry Rz of passive rotations.
        translation: metres, after the rotation.
        translation_std: of a random shift on every axis, metres.
        probability: that a frame is corrupted.
        per_sweep: every sweep draws for itself, as MultiCorrupt has it.
    """

    rotation: tuple[float, float, float] = (0.0, 0.0, 0.0)
    translation: tuple[float, float, float] = (0.0, 0.0, 0.0)
    translation_std: float = 0.0
    probability: float = 1.0
    per_sweep: bool = False

    def is_identity(self) -> bool:
        """See :class:`SweepStep`."""
        moves = (*self.rotation, *self.translation, self.translation_std)
        return self.probability == 0 or not any(moves)

    def corrupt(self, points: Points, context: SweepContext) -> Points:
        """See :class:`SweepStep`."""
        random = context.random() if self.per_sweep else context.frame_random()
        if random.random() >= self.probability:
            return points
        shift = self.translation + self.translation_std * random.standard_normal(3)
        moved = points.copy()
        moved[:, :3] = points[:, :3].astype(np.float64) @ _passive(self.rotation).T + shift
        return moved


def _passive(degrees: tuple[float, float, float]) -> NDArray[np.float64]:
    """(3, 3) Rx Ry Rz, each turning coordinates and not points."""
    product = np.eye(3)
    for axis, angle in enumerate(np.deg2rad(degrees)):
        i, j = (axis + 1) % 3, (axis + 2) % 3
        turn = np.eye(3)
        turn[i, i] = turn[j, j] = np.cos(angle)
        turn[i, j], turn[j, i] = np.sin(angle), -np.sin(angle)
        product = product @ turn
    return product
