"""Points that do not come back: by chance, by ring."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .sensors import SweepContext, SweepStep


@dataclass(frozen=True)
class DropPoints(SweepStep):
    """Lose points at random; the others stay in their order.

    Args:
        fraction: share of the points of every sweep that is lost.
        stride: of what is left, keep every stride-th point in file order.
    """

    fraction: float = 0.0
    stride: int = 1

    def __post_init__(self) -> None:
        if not 0 <= self.fraction <= 1 or self.stride < 1:
            raise ValueError(
                f"fraction is {self.fraction:g}, stride {self.stride}; give 0 <= fraction <= 1 and "
                "a stride of at least 1"
            )

    def is_identity(self) -> bool:
        """See :class:`SweepStep`."""
        return self.fraction == 0 and self.stride == 1

    def corrupt(self, points: NDArray[np.float32], context: SweepContext) -> NDArray[np.float32]:
        """See :class:`SweepStep`."""
        if self.fraction:
            points = points[random_subset(len(points), 1 - self.fraction, context.random())]
        return points[:: self.stride]


def random_subset(count: int, share: float, random: np.random.Generator) -> NDArray[np.int64]:
    """round(count * share) of the numbers below count, ascending."""
    chosen = round(count * share)
    return np.sort(random.choice(count, chosen, replace=False, shuffle=False))


@dataclass(frozen=True)
class KeepRings(SweepStep):
    """Keep the returns of some beams only, the same in every sweep.

    Args:
        rings: numbers of the rings that stay.
    """

    rings: tuple[int, ...]

    def corrupt(self, points: NDArray[np.float32], context: SweepContext) -> NDArray[np.float32]:
        """See :class:`SweepStep`."""
        return points[np.isin(points[:, 4], np.array(self.rings, np.float32))]
