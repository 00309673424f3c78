"""What a report says at its head; the sections below it are in ``sections.py``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from .sections import Section


@dataclass(frozen=True)
class Card:
    """A number that stands out.

    Args:
        name: what it is.
        value: a number, NaN for one that does not exist; or text, shown as it is.
        note: a few words below it.
        share: 0..1, the length of a bar under it; None for no bar.
        unit: written small behind the value.
        digits: after the point.
    """

    name: str
    value: float | str
    note: str = ""
    share: float | None = None
    unit: str = ""
    digits: int = 3

    @staticmethod
    def score(name: str, value: float, note: str = "") -> Card:
        """A metric between 0 and 1, with its bar."""
        return Card(name, value, note, value)


@dataclass(frozen=True)
class RunReport:
    """A report.

    Args:
        title: headline.
        summary: a sentence or two: what was run.
        facts: name -> value of what one needs to know of the run: configuration, commit, date,
            machine, seed, data set and its size.
        cards: the numbers that matter most.
        sections: in the order of the page; those without content are left out.
    """

    title: str
    summary: str = ""
    facts: Mapping[str, str | int | float] = field(default_factory=dict)
    cards: tuple[Card, ...] = ()
    sections: tuple[Section, ...] = ()
