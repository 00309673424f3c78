"""Corruptions made of corruptions: none, several after one another, a random one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from ..frame import Frame
from ..seeding import generator

if TYPE_CHECKING:
    from ..dataset import Step


@dataclass(frozen=True)
class Identity:
    """Changes nothing."""

    def __call__(self, frame: Frame, seed: int) -> Frame:
        """The frame itself."""
        return frame


@dataclass(frozen=True)
class Sequential:
    """Several steps after one another, each with random numbers of its own.

    Args:
        steps: the first is applied first.
    """

    steps: tuple[Step, ...]

    def __call__(self, frame: Frame, seed: int) -> Frame:
        """The frame after all steps."""
        for number, step in enumerate(self.steps):
            # Two steps of one kind must not repeat each other's draws.
            own = generator(seed, str(number), "sequential").integers(2**63)
            frame = step(frame, int(own))
        return frame
