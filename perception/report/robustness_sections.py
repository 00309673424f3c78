"""The sections that show a robustness benchmark."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from ..visualize import curves
from ..visualize.robustness_curves import Curves, radar_figure, severity_figure
from .sections import Ablation, Section


@dataclass(frozen=True)
class FaultTable(Ablation):
    """Rows compared to the clean first row."""

    heading, short = "Sensors lost and attacked", "Lost sensors"
    hint: ClassVar[str] = (
        "The same weights; a lost sensor gives nothing at all, a black camera gives black images."
    )


@dataclass(frozen=True)
class HeatMap(Section):
    """Scores of a suite by corruption and severity, coloured by their share of the clean score.

    Args:
        suite: name of the suite.
        clean: score -> value without corruption.
        rows: corruption -> score -> severity -> value; NaN for a cell that does not count.
        resistance: corruption -> score -> RA.
    """

    template, heading, data = "heat_map.html.j2", "", "rows"
    suite: str
    clean: Mapping[str, float]
    rows: Mapping[str, Mapping[str, Mapping[int, float]]]
    resistance: Mapping[str, Mapping[str, float]]

    @property
    def title(self) -> str:
        """The heading."""
        return f"{self.suite}: scores by severity"

    @property
    def short(self) -> str:  # type: ignore[override]
        """The heading in the menu."""
        return self.suite

    @property
    def severities(self) -> tuple[int, ...]:
        """All that any corruption has."""
        found = {s for row in self.rows.values() for curve in row.values() for s in curve}
        return tuple(sorted(found))


@dataclass(frozen=True)
class SeverityCurves(Section):
    """A small plot for each corruption: scores over severity, 0 being clean."""

    template, heading, data = "figure.html.j2", "", "corruptions"
    suite: str
    corruptions: Mapping[str, Curves]
    baseline: Mapping[str, Curves]
    short = "Curves"

    @property
    def title(self) -> str:
        """The heading."""
        return f"{self.suite}: curves"

    @property
    def note(self) -> str:
        """Above the figure."""
        dashed = " Dashed: the baseline." if self.baseline else ""
        return f"Across: severity, 0 being the clean run; up: the score.{dashed}"

    @property
    def svg(self) -> str:
        """The figure."""
        figure = severity_figure(self.corruptions, self.baseline)
        return curves.to_svg(figure, f"curves-{self.suite}", "scores over severity")


@dataclass(frozen=True)
class Radar(Section):
    """Resistance of each corruption around a circle: score -> corruption -> RA."""

    template, heading, data = "radar.html.j2", "", "resistance"
    suite: str
    resistance: Mapping[str, Mapping[str, float]]
    baseline: Mapping[str, Mapping[str, float]]
    short = "Radar"

    @property
    def title(self) -> str:
        """The heading."""
        return f"{self.suite}: resistance"

    @property
    def svg(self) -> str:
        """The figure."""
        figure = radar_figure(self.resistance, self.baseline)
        return curves.to_svg(figure, f"radar-{self.suite}", "resistance by corruption")


@dataclass(frozen=True)
class FormattedTable(Section):
    """A table of texts: the first column says what a row is.

    Args:
        name: the heading.
        head: of the columns.
        rows: each as long as ``head``.
        note: a sentence above it.
        short: the heading in the menu.
        folded: hidden until it is asked for.
    """

    template, heading, data = "text_table.html.j2", "", "rows"
    name: str
    head: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    note: str = ""
    short: str = ""
    folded: bool = False

    @property
    def title(self) -> str:
        """The heading."""
        return self.name


@dataclass(frozen=True)
class CorruptionPicture:
    """One frame, clean and at each severity: a JPEG file's bytes."""

    title: str
    caption: str
    jpeg: bytes


@dataclass(frozen=True)
class CorruptionGallery(Section):
    """What corruptions look like, and what the model makes of them."""

    template, heading, data = "corruptions.html.j2", "What the model saw", "pictures"
    short = "Pictures"
    pictures: tuple[CorruptionPicture, ...]
