"""What a benchmark's corruption is: a step for each severity, and how near it is to the original.

A benchmark names a corruption once though it may concern several sensors ("fog" thickens images
and clouds). Each sensor's half is a :class:`Part`; the parts of one name make an :class:`Entry`.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum, Flag, auto
from typing import TYPE_CHECKING

from .combine import Identity, Sequential

if TYPE_CHECKING:
    from ..dataset import Step


class Fidelity(Enum):
    """How near a corruption is to the benchmark's own."""

    SAME_ALGORITHM = "same algorithm"
    SAME_STATISTICS = "statistically the same"
    OWN_MODEL = "own model of the effect"


class Touches(Flag):
    """What of a frame a corruption changes. The truth (annotations, poses, maps) never is.

    After a change of calibration or time the truth still says where things are at the key time:
    the sensor is wrong, not the world.
    """

    LIDAR = auto()  # points
    CAMERA = auto()  # pixels
    CALIBRATION = auto()  # mountings and intrinsics
    TIME = auto()  # which moment sensor data are from


@dataclass(frozen=True)
class Part:
    """What a corruption does to one sensor.

    Args:
        touches: what it changes.
        steps: one for each severity, mildest first.
        fidelity: how near it is to the benchmark's own.
        remark: how that was tested, and which flaw of the benchmark is left out.
        published: the steps with the benchmark's flaws, where they differ.
    """

    touches: Touches
    steps: tuple[Step, ...]
    fidelity: Fidelity
    remark: str
    published: tuple[Step, ...] | None = None

    def __post_init__(self) -> None:
        if self.published is not None and len(self.published) != len(self.steps):
            raise ValueError(
                f"{len(self.steps)} severities, but {len(self.published)} as published; give one "
                "step for each severity"
            )


@dataclass(frozen=True)
class Entry:
    """A corruption of a benchmark: its name and what it does to each sensor."""

    name: str
    parts: tuple[Part, ...]

    def __post_init__(self) -> None:
        if len({len(part.steps) for part in self.parts}) != 1:
            raise ValueError(f"the parts of {self.name} differ in their number of severities")

    @property
    def severities(self) -> int:
        """The number of severities; they count from 1."""
        return len(self.parts[0].steps)

    @property
    def touches(self) -> Touches:
        """What any part changes."""
        touches = Touches(0)
        for part in self.parts:
            touches |= part.touches
        return touches

    def at(self, severity: int, as_published: bool = False) -> Step:
        """The step of a severity.

        Args:
            severity: from 1, the mildest; 0 changes nothing.
            as_published: with the benchmark's flaws, where a part has them.

        Raises:
            ValueError: if there is no such severity.
        """
        if not 0 <= severity <= self.severities:
            raise ValueError(
                f"{self.name} has no severity {severity}; give 0 (nothing changes) to "
                f"{self.severities}"
            )
        if severity == 0:
            return Identity()
        chosen = [
            (part.published if as_published and part.published else part.steps)[severity - 1]
            for part in self.parts
        ]
        return chosen[0] if len(chosen) == 1 else Sequential(tuple(chosen))


@dataclass(frozen=True)
class Suite:
    """The corruptions of a benchmark.

    Args:
        name: as users call it.
        title: the benchmark's full name and paper.
        entries: in the benchmark's order.
    """

    name: str
    title: str
    entries: tuple[Entry, ...]

    @staticmethod
    def of(name: str, title: str, *parts: dict[str, Part]) -> Suite:
        """Put together what files say of the same benchmark: parts by corruption name."""
        merged: dict[str, tuple[Part, ...]] = {}
        for some in parts:
            for entry, part in some.items():
                merged[entry] = (*merged.get(entry, ()), part)
        return Suite(name, title, tuple(Entry(n, p) for n, p in merged.items()))

    @property
    def names(self) -> tuple[str, ...]:
        """The names of the entries."""
        return tuple(entry.name for entry in self.entries)

    def __getitem__(self, name: str) -> Entry:
        """The entry of that name; case, blanks and underscores do not matter.

        Raises:
            ValueError: if there is none, listing those there are.
        """
        for entry in self.entries:
            if _key(entry.name) == _key(name):
                return entry
        raise ValueError(f'{self.name} has no corruption "{name}"; use {", ".join(self.names)}')


def _key(name: str) -> str:
    return "".join(filter(str.isalnum, name.lower()))
