"""Robustness metrics of the published benchmarks, of any score M in [0, 1], larger being better.

With c a corruption, s its severities, N corruptions and a baseline model:

    RA(c)  = mean over s of M(c, s) / M(clean)                        mRA  = mean over c
    RR(c)  = sum over s of M(c, s) / (number of s * M(clean))         mRR  = mean over c
    RCE(c) = (M(clean) - mean over s of M(c, s)) / M(clean)           RCE  = the same of the mean
    RRA(c) = sum over s of M(c, s) / sum over s of M_baseline(c, s) - 1      mRRA = mean over c
    CE(c)  = sum over s of (1 - M(c, s)) / sum over s of (1 - M_baseline(c, s))   mCE = mean over c

RA and RRA are MultiCorrupt's, CE and RR RoboBEV's and Robo3D's, RCE is nuScenes-C's. RA and RR are
the same number under two names. All are fractions here; tables print all but RA in percent.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

Scores = Mapping[int, float]  # by severity


def resistance_ability(scores: Sequence[float], clean: float) -> float:
    """RA, which is also RR; NaN where the clean score is 0."""
    return _mean(scores) / clean if clean else math.nan


def relative_corruption_error(scores: Sequence[float], clean: float) -> float:
    """RCE."""
    return (clean - _mean(scores)) / clean if clean else math.nan


def relative_resistance(scores: Sequence[float], baseline: Sequence[float]) -> float:
    """RRA; NaN where the baseline scores nothing at all."""
    return sum(scores) / sum(baseline) - 1 if sum(baseline) else math.nan


def corruption_error(scores: Sequence[float], baseline: Sequence[float]) -> float:
    """CE."""
    missed = sum(1 - score for score in baseline)
    return sum(1 - score for score in scores) / missed if missed else math.nan


@dataclass(frozen=True)
class CorruptionScores:
    """One corruption by one score. NaN without a baseline that has all its severities."""

    scores: dict[int, float]
    mean: float
    ra: float
    rce: float
    rra: float
    ce: float


@dataclass(frozen=True)
class SuiteScores:
    """A suite by one score; means over the corruptions of which every planned cell counts."""

    clean: float
    corruptions: dict[str, CorruptionScores]
    left_out: tuple[str, ...]  # corruptions with a cell that does not count
    worst: tuple[str, int, float]  # corruption, severity and score; name "" if there is none

    @property
    def mra(self) -> float:
        """mRA."""
        return self._mean_of("ra")

    @property
    def mrr(self) -> float:
        """mRR."""
        return self._mean_of("ra")

    @property
    def rce(self) -> float:
        """RCE of the mean score over corruptions."""
        return relative_corruption_error([c.mean for c in self.corruptions.values()], self.clean)

    @property
    def mrra(self) -> float:
        """mRRA."""
        return self._mean_of("rra")

    @property
    def mce(self) -> float:
        """mCE."""
        return self._mean_of("ce")

    def _mean_of(self, name: str) -> float:
        return _mean([getattr(c, name) for c in self.corruptions.values()])


def suite_scores(
    table: Mapping[str, Mapping[int, float]],
    clean: float,
    baseline: Mapping[str, Mapping[int, float]] | None = None,
) -> SuiteScores:
    """Put a suite's metrics together.

    Args:
        table: corruption -> severity -> score; NaN for a cell that does not count.
        clean: the score without corruption.
        baseline: the same table of the model to compare with.
    """
    corruptions, left_out = {}, []
    for name, row in table.items():
        scores = list(row.values())
        if not scores or any(map(math.isnan, scores)):
            left_out.append(name)
            continue
        theirs = [(baseline or {}).get(name, {}).get(s, math.nan) for s in row]
        corruptions[name] = CorruptionScores(
            scores=dict(row),
            mean=_mean(scores),
            ra=resistance_ability(scores, clean),
            rce=relative_corruption_error(scores, clean),
            rra=relative_resistance(scores, theirs),
            ce=corruption_error(scores, theirs),
        )
    cells = [(c, s, v) for c, row in table.items() for s, v in row.items() if not math.isnan(v)]
    worst = min(cells, key=lambda cell: cell[2], default=("", 0, math.nan))
    return SuiteScores(clean, corruptions, tuple(left_out), worst)


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else math.nan
