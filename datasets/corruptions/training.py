"""Corruptions as an augmentation: the benchmarks' own, drawn anew for every frame and epoch."""

from __future__ import annotations

from dataclasses import dataclass

from ..frame import Frame
from ..seeding import generator
from .suites import suite_of


@dataclass(frozen=True)
class RandomCorruption:
    """Corrupt some frames with an entry of a benchmark, drawn at random.

    Stands before the resizing of images: corruptions are defined on the camera's own pixels.

    Args:
        suite: name of the benchmark.
        names: entries to draw from; none given means all.
        probability: that a frame is corrupted.
        severities: smallest and largest severity; null for all that the entry has.
    """

    suite: str
    names: tuple[str, ...] = ()
    probability: float = 0.5
    severities: tuple[int, int] | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.probability <= 1:
            raise ValueError(f"probability is {self.probability:g}; give a value from 0 to 1")
        suite = suite_of(self.suite)
        entries = [suite[name] for name in self.names] or list(suite.entries)
        for entry in entries:
            low, high = self.severities or (1, entry.severities)
            if not 1 <= low <= high <= entry.severities:
                raise ValueError(
                    f"severities is ({low}, {high}), but {entry.name} of {suite.name} has 1 to "
                    f"{entry.severities}; give 1 <= smallest <= largest <= {entry.severities}"
                )

    def __call__(self, frame: Frame, seed: int) -> Frame:
        """The frame, perhaps corrupted; the same for the same frame and ``seed``."""
        random = generator(seed, frame.token, "random_corruption")
        if random.random() >= self.probability:
            return frame
        suite = suite_of(self.suite)
        names = self.names or suite.names
        entry = suite[names[random.integers(len(names))]]
        low, high = self.severities or (1, entry.severities)
        return entry.at(int(random.integers(low, high + 1)))(frame, seed)
