"""Results as text: CSV for programs, markdown and LaTeX for papers, tables for the terminal."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Sequence
from dataclasses import dataclass

from .cells import ATTACK, CLEAN, SENSORS
from .results import Results, Row

DAMAGE_HEADINGS = {
    "cameras_lost": "cameras lost",
    "pixel_change": "pixel change",
    "psnr_db": "PSNR dB",
    "points_lost": "points lost",
    "points_altered": "points altered",
    "rotation_deg": "mounting deg",
    "shift_m": "mounting m",
}


@dataclass(frozen=True)
class TextTable:
    """A table whose first column is text; NaN is an empty cell."""

    title: str
    head: tuple[str, ...]
    rows: tuple[tuple[str | float, ...], ...]
    note: str = ""

    @property
    def texts(self) -> list[list[str]]:
        """The rows as text: percentages with one digit, all else with three."""
        digits = [1 if name.endswith("%") else 3 for name in self.head]
        return [list(map(cell_text, row, digits)) for row in self.rows]


def all_tables(results: Results, baseline: Results | None = None) -> list[TextTable]:
    """Summary, lost sensors, and by suite every score and NDS by distance."""
    tables = [summary_table(results, baseline)] if results.suites else []
    if results.of(SENSORS, ATTACK):
        tables.append(sensors_table(results))
    for suite in results.suites:
        tables += [suite_table(results, suite, m, baseline) for m in results.metrics]
        if results.clean.ranges:
            tables.append(range_table(results, suite))
    return tables


def summary_table(results: Results, baseline: Results | None = None) -> TextTable:
    """A row for each suite and score."""
    head = ["suite", "score", "clean", "mRA", "mRR %", "RCE %"]
    head += ["mCE %", "mRRA %"] if baseline else []
    rows, left_out = [], []
    for suite in results.suites:
        for metric in results.metrics:
            s = results.scores(suite, metric, baseline)
            row = [suite, metric, s.clean, s.mra, 100 * s.mrr, 100 * s.rce]
            row += [100 * s.mce, 100 * s.mrra] if baseline else []
            name, severity, value = s.worst
            rows.append((*row, f"{name} {severity}: {value:.3f}" if name else ""))
        total = len(results.table(suite, metric))
        if len(s.corruptions) < total:
            left_out.append(f"{suite}: means over {len(s.corruptions)} of {total} corruptions")
    note = "; ".join(left_out) + "; the others have cells that do not count." if left_out else ""
    return TextTable("Robustness", (*head, "worst cell"), tuple(rows), note)


def sensors_table(results: Results) -> TextTable:
    """The clean row, and those without a sensor and under attack."""
    rows = [
        (row.name, *(row.score(m) for m in results.metrics))
        for row in results.of(CLEAN, SENSORS, ATTACK)
    ]
    return TextTable("Sensors lost and attacked", ("inputs", *results.metrics), tuple(rows))


def suite_table(
    results: Results, suite: str, metric: str, baseline: Results | None = None
) -> TextTable:
    """A row for each corruption: the score at each severity and what follows from it."""
    table, scores = results.table(suite, metric), results.scores(suite, metric, baseline)
    severities = sorted({s for row in table.values() for s in row})
    head = ["corruption", *map(str, severities), "mean", "RA", "RCE %"]
    head += ["CE %", "RRA %"] if baseline else []
    rows = []
    for name, row in table.items():
        known = scores.corruptions.get(name)
        cells = [name, *(row.get(s, math.nan) for s in severities)]
        if known is None:
            cells += [math.nan] * (len(head) - len(cells))
        else:
            cells += [known.mean, known.ra, 100 * known.rce]
            cells += [100 * known.ce, 100 * known.rra] if baseline else []
        rows.append(tuple(cells))
    title = f"{suite}: {metric} by severity (clean {results.clean.score(metric):.3f})"
    return TextTable(title, tuple(head), tuple(rows))


def range_table(results: Results, suite: str, metric: str = "NDS") -> TextTable:
    """A score by distance from the vehicle: clean, and each corruption's mean over severities."""
    bands = [f"{b['near']:g}-{b['far']:g} m" for b in results.clean.ranges]
    groups: dict[str, list[Row]] = {"clean": [results.clean]}
    for row in results.of(suite):
        groups.setdefault(row.name, []).append(row)
    rows = tuple(
        (name, *_mean_of_bands(members, metric, len(bands))) for name, members in groups.items()
    )
    return TextTable(f"{suite}: {metric} by distance", ("corruption", *bands), rows)


def _mean_of_bands(rows: Sequence[Row], metric: str, count: int) -> list[float]:
    values = [[row.ranges[k][metric] for row in rows if row.ranges] for k in range(count)]
    return [
        sum(map(float, band)) / len(band) if band and None not in band else math.nan  # type: ignore
        for band in values
    ]


def csv_text(results: Results) -> str:
    """A line for each cell: scores, proof and measure of the change, NDS by distance."""
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    bands = [f"NDS {b['near']:g}-{b['far']:g} m" for b in results.clean.ranges]
    writer.writerow(
        ["group", "name", "severity", *results.metrics, *bands, "frames", "skipped",
         "changed frames", *DAMAGE_HEADINGS.values(), "fidelity", "parameters", "refused"]
    )  # fmt: skip
    for row in results.rows:
        by_band = [band["NDS"] for band in row.ranges] or [None] * len(bands)
        writer.writerow(
            [row.group, row.name, row.severity, *(row.scores.get(m) for m in results.metrics),
             *by_band, row.frames, row.skipped, row.changed_frames,
             *(row.damage.get(name) for name in DAMAGE_HEADINGS), row.fidelity, row.parameters,
             row.refused]
        )  # fmt: skip
    return file.getvalue()


def markdown_text(tables: Sequence[TextTable]) -> str:
    """The tables in GitHub's markdown."""
    parts = []
    for table in tables:
        rule = ["---", *["---:"] * (len(table.head) - 1)]
        lines = [f"| {' | '.join(cells)} |" for cells in (table.head, rule, *table.texts)]
        parts.append("\n".join([f"### {table.title}", "", *lines]))
        if table.note:
            parts[-1] += f"\n\n{table.note}"
    return "\n\n".join(parts) + "\n"


def latex_text(tables: Sequence[TextTable]) -> str:
    """The tables in LaTeX; they need the package booktabs."""
    parts = ["% needs \\usepackage{booktabs}"]
    for table in tables:
        lines = [
            "\\begin{table}[t]",
            "\\centering",
            f"\\caption{{{_escape(' '.join([table.title + '.', table.note]).strip())}}}",
            f"\\begin{{tabular}}{{l{'r' * (len(table.head) - 1)}}}",
            "\\toprule",
            _latex_row(table.head),
            "\\midrule",
            *map(_latex_row, table.texts),
            "\\bottomrule",
            "\\end{tabular}",
            "\\end{table}",
        ]
        parts.append("\n".join(lines))
    return "\n\n".join(parts) + "\n"


def print_tables(tables: Sequence[TextTable]) -> None:
    """The tables on the terminal."""
    from rich.console import Console
    from rich.table import Table

    console = Console()
    for table in tables:
        shown = Table(title=table.title, title_justify="left", caption=table.note or None)
        for number, name in enumerate(table.head):
            shown.add_column(name, justify="right" if number else "left")
        for row in table.texts:
            shown.add_row(*row)
        console.print(shown)


def cell_text(cell: str | float, digits: int = 3) -> str:
    """A cell as all tables write it; empty where there is no number."""
    if isinstance(cell, str):
        return cell
    return "" if math.isnan(cell) else f"{cell:.{digits}f}"


def _latex_row(cells: Sequence[str]) -> str:
    return " & ".join(map(_escape, cells)) + r" \\"


def _escape(text: str) -> str:
    for sign in "&%_#":
        text = text.replace(sign, "\\" + sign)
    return text
