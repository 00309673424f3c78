"""The table of a benchmark: every cell's scores, those that do not count left out, by name."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from .cells import ATTACK, CLEAN, SENSORS
from .scores import SuiteScores, suite_scores
from .store import read_json

LEADING = "NDS"  # the score that is shown where there is room for one
UNCHANGED = "inputs equal the clean ones"


@dataclass(frozen=True)
class Row:
    """A cell's result.

    ``scores`` is empty if the cell does not count; ``refused`` then says why.
    """

    group: str
    name: str
    severity: int
    fidelity: str
    parameters: str
    scores: dict[str, float]
    ranges: list[dict[str, float | None]]
    frames: int
    skipped: int
    changed_frames: int
    damage: dict[str, float | None]
    refused: str = ""

    def score(self, metric: str) -> float:
        """A score by name; NaN if there is none."""
        return self.scores.get(metric, math.nan)


@dataclass(frozen=True)
class Results:
    """Rows in the order of the plan, the clean one first.

    Args:
        setup: what was measured on what, for people.
        rows: one for each cell.
    """

    setup: dict[str, Any]
    rows: tuple[Row, ...]

    @property
    def clean(self) -> Row:
        """The row without corruption."""
        return self.rows[0]

    @property
    def metrics(self) -> tuple[str, ...]:
        """Names of the scores, the leading one first."""
        names = list(self.clean.scores)
        return tuple(sorted(names, key=lambda name: name != LEADING))

    @property
    def suites(self) -> tuple[str, ...]:
        """Names of the suites."""
        others = (CLEAN, SENSORS, ATTACK)
        return tuple(dict.fromkeys(r.group for r in self.rows if r.group not in others))

    @property
    def refused(self) -> tuple[Row, ...]:
        """The rows that do not count."""
        return tuple(row for row in self.rows if row.refused)

    def of(self, *groups: str) -> tuple[Row, ...]:
        """The rows of some groups."""
        return tuple(row for row in self.rows if row.group in groups)

    def table(self, suite: str, metric: str) -> dict[str, dict[int, float]]:
        """Corruption -> severity -> score."""
        table: dict[str, dict[int, float]] = {}
        for row in self.of(suite):
            table.setdefault(row.name, {})[row.severity] = row.score(metric)
        return table

    def scores(self, suite: str, metric: str, baseline: Results | None = None) -> SuiteScores:
        """The robustness metrics of a suite."""
        theirs = baseline.table(suite, metric) if baseline else None
        return suite_scores(self.table(suite, metric), self.clean.score(metric), theirs)

    def summary(self, baseline: Results | None = None) -> dict[str, dict[str, dict[str, Any]]]:
        """Suite -> score -> its summary; what does not exist is None."""
        return {
            suite: {m: _summary(self.scores(suite, m, baseline)) for m in self.metrics}
            for suite in self.suites
        }

    def to_json(self, baseline: Results | None = None) -> dict[str, Any]:
        """Everything; no times, so that the same benchmark gives the same bytes."""
        return {
            "setup": self.setup,
            "baseline": baseline.setup if baseline else None,
            "clean": self.clean.scores,
            "summary": self.summary(baseline),
            "rows": [asdict(row) for row in self.rows],
        }

    @staticmethod
    def read(path: Path | str) -> Results:
        """What :meth:`to_json` wrote.

        Raises:
            DataError: if the file cannot be read.
            ValueError: if it is no such file.
        """
        content = read_json(Path(path))
        try:
            return Results(content["setup"], tuple(Row(**row) for row in content["rows"]))
        except (KeyError, TypeError) as error:
            raise ValueError(
                f"{path} is no results.json of bevstack robustness ({error}); give one"
            ) from error


def assemble(setup: Mapping[str, Any], cells: Sequence[Mapping[str, Any]]) -> Results:
    """The table of finished cells, the clean one first.

    A cell counts only if the inputs of at least one frame differ from the clean cell's.
    """
    clean = cells[0]
    rows = []
    for cell in cells:
        changed = sum(clean["inputs"].get(t) != digest for t, digest in cell["inputs"].items())
        refused = UNCHANGED if cell is not clean and changed == 0 else ""
        rows.append(
            Row(
                group=cell["group"],
                name=cell["name"],
                severity=cell["severity"],
                fidelity=cell["fidelity"],
                parameters=cell["parameters"],
                scores={} if refused else dict(cell["scores"]),
                ranges=[] if refused else list(cell["ranges"]),
                frames=cell["frames"],
                skipped=len(cell["skipped"]),
                changed_frames=changed,
                damage=dict(cell["damage"]),
                refused=refused,
            )
        )
    return Results(dict(setup), tuple(rows))


def _summary(scores: SuiteScores) -> dict[str, Any]:
    name, severity, value = scores.worst
    return {
        "clean": _known(scores.clean),
        "mRA": _known(scores.mra),
        "mRR": _known(scores.mrr),
        "RCE": _known(scores.rce),
        "mRRA": _known(scores.mrra),
        "mCE": _known(scores.mce),
        "worst": {"corruption": name, "severity": severity, "score": _known(value)},
        "corruptions": len(scores.corruptions),
        "left_out": list(scores.left_out),
        "by_corruption": {
            c: {
                "mean": _known(s.mean), "RA": _known(s.ra), "RCE": _known(s.rce),
                "RRA": _known(s.rra), "CE": _known(s.ce),
            }
            for c, s in scores.corruptions.items()
        },
    }  # fmt: skip


def _known(value: float) -> float | None:
    return None if math.isnan(value) else value
