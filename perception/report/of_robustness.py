"""The report of a robustness benchmark, and its part of a run's report."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..robustness.cells import ATTACK, CLEAN, SENSORS
from ..robustness.results import LEADING, Results, Row
from ..robustness.store import run_digest
from ..robustness.tables import (
    DAMAGE_HEADINGS,
    TextTable,
    cell_text,
    range_table,
    summary_table,
)
from ..robustness.write import RESULTS, read_pictures
from ..visualize.style import title_of
from .content import Card, RunReport
from .robustness_sections import (
    CorruptionGallery,
    CorruptionPicture,
    FaultTable,
    FormattedTable,
    HeatMap,
    Radar,
    SeverityCurves,
)
from .sections import Commands, Section
from .write import write_report


def write_robustness_report(
    path: Path,
    results: Results,
    baseline: Results | None,
    pictures: Mapping[tuple[str, str], bytes],
    facts: Mapping[str, Any],
    command: str,
) -> None:
    """Write the HTML report of a benchmark.

    Args:
        path: the file to write.
        results: what was measured.
        baseline: of the model to compare with; None for none.
        pictures: JPEG files by suite and corruption.
        facts: what one needs to know of the run.
        command: that made it.
    """
    sections: list[Section] = []
    if results.suites:
        sections.append(_formatted(summary_table(results, baseline), "Summary"))
    sections += robustness_sections(results, baseline, pictures)
    for suite in results.suites:
        if results.clean.ranges:
            sections.append(_formatted(range_table(results, suite), "Distance"))
    sections += [inputs_section(results), Commands((command,))]
    report = RunReport(
        title="Robustness: broken sensors on one bird's-eye view",
        summary=f"The same weights on {results.clean.frames} frames, clean, under "
        f"{len(results.rows) - 1} faults, and how much of the score is left.",
        facts=facts,
        cards=summary_cards(results, baseline),
        sections=tuple(sections),
    )
    write_report(report, path)


def stored_results(run_folder: Path) -> Results | None:
    """What ``bevstack robustness`` found out about a run; None if it is of other weights."""
    path = run_folder / "robustness" / RESULTS
    if not path.exists():
        return None
    results = Results.read(path)
    return results if results.setup["model"] == run_digest(run_folder) else None


def stored_sections(run_folder: Path, results: Results) -> list[Section]:
    """The sections of such results, with the pictures beside them."""
    pictures = read_pictures(run_folder / "robustness", results)
    return robustness_sections(results, None, pictures)


def robustness_sections(
    results: Results, baseline: Results | None, pictures: Mapping[tuple[str, str], bytes]
) -> list[Section]:
    """Lost sensors; heat map, radar and curves of every suite; pictures."""
    sections: list[Section] = []
    if results.of(SENSORS, ATTACK):
        rows = {r.name: r.scores for r in results.of(CLEAN, SENSORS, ATTACK) if r.scores}
        sections.append(
            FaultTable({n: {m: s[m] for m in results.metrics} for n, s in rows.items()})
        )
    for suite in results.suites:
        tables = {metric: results.table(suite, metric) for metric in results.metrics}
        resistance = _resistance(results, suite)
        names = list(tables[results.metrics[0]])
        by_name = {name: {m: tables[m][name] for m in tables} for name in names}
        clean = {m: results.clean.score(m) for m in results.metrics}
        sections.append(
            HeatMap(
                suite, clean, by_name,
                {n: {m: resistance[m].get(n, float("nan")) for m in tables} for n in names},
            )
        )  # fmt: skip
        theirs = _resistance(baseline, suite) if baseline else {}
        if len(names) > 2:  # a circle of two spokes is a line
            sections.append(Radar(suite, resistance, theirs))
        their_curves = _curves(baseline, suite) if baseline else {}
        sections.append(SeverityCurves(suite, _curves(results, suite), their_curves))
    sections.append(CorruptionGallery(tuple(_pictures(results, pictures))))
    return sections


def summary_cards(results: Results, baseline: Results | None) -> tuple[Card, ...]:
    """The clean score, what is left of it in each suite, and the worst cell."""
    metric = results.metrics[0]
    cards = [Card.score(f"{metric}, clean", results.clean.score(metric))]
    for suite in results.suites:
        scores = results.scores(suite, metric, baseline)
        cards.append(Card.score(f"mRA, {suite}", scores.mra, f"of {metric} over all severities"))
        if baseline:
            cards.append(Card(f"mCE, {suite}", 100 * scores.mce, "below 100: better than the "
                              "baseline", unit="%", digits=1))  # fmt: skip
    counted = [row for row in results.rows[1:] if row.scores]
    if counted:
        worst = min(counted, key=lambda row: row.score(metric))
        severity = f" {worst.severity}" if worst.group in results.suites else ""
        cards.append(Card.score("Worst cell", worst.score(metric), title_of(worst.name) + severity))
    return tuple(cards)


def inputs_section(results: Results) -> FormattedTable:
    """Proof that every cell saw something else than the clean data, and how much else."""
    rows = [
        (_row_name(row), f"{row.changed_frames} of {row.frames}",
         *(_damage_text(name, row.damage.get(name)) for name in DAMAGE_HEADINGS),
         row.fidelity, row.refused)
        for row in results.rows[1:]
    ]  # fmt: skip
    refused = len(results.refused)
    note = (
        "Every cell's encoded inputs are compared with the clean ones, frame by frame; a cell "
        "without any difference does not count. "
        + (f"That were {refused}." if refused else "All of them differ.")
    )
    head = ("cell", "frames changed", *DAMAGE_HEADINGS.values(), "fidelity", "refused")
    return FormattedTable("Inputs", head, tuple(rows), note, folded=True)


def _formatted(table: TextTable, short: str) -> FormattedTable:
    rows = tuple(map(tuple, table.texts))
    return FormattedTable(table.title, table.head, rows, table.note, short)


def _resistance(results: Results, suite: str) -> dict[str, dict[str, float]]:
    """Score -> corruption -> RA."""
    return {
        metric: {n: c.ra for n, c in results.scores(suite, metric).corruptions.items()}
        for metric in results.metrics
    }


def _curves(results: Results, suite: str) -> dict[str, dict[str, dict[int, float]]]:
    """Corruption -> score -> severity -> value, the clean one at 0."""
    curves: dict[str, dict[str, dict[int, float]]] = {}
    for metric in results.metrics:
        for name, row in results.table(suite, metric).items():
            curves.setdefault(name, {})[metric] = {0: results.clean.score(metric), **row}
    return curves


def _pictures(results: Results, pictures: Mapping[tuple[str, str], bytes]):
    several = len(results.suites) > 1
    for (group, name), jpeg in pictures.items():
        rows = [row for row in results.of(group) if row.name == name]
        metric = LEADING if LEADING in results.metrics else results.metrics[0]
        scores = [cell_text(row.score(metric)) or "refused" for row in rows]
        clean = cell_text(results.clean.score(metric))
        caption = f"{metric} {clean} clean, {', '.join(scores)}" if scores else ""
        title = f"{group}: {name}" if several and group in results.suites else name
        yield CorruptionPicture(title, caption, jpeg)


def _row_name(row: Row) -> str:
    return row.name if row.group in (SENSORS, ATTACK) else f"{row.group}: {row.name} {row.severity}"


def _damage_text(name: str, value: float | None) -> str:
    if value is None or value == 0:
        return "" if value is None else "0"
    if name in ("cameras_lost", "points_lost", "points_altered"):
        return f"{100 * value:.1f} %"
    return f"{value:.3g}"
