"""Figures of a robustness benchmark: scores over severity, and resistance by corruption."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from .curves import FAINT, INK, TERM_COLOURS, new_figure
from .style import title_of

COLUMNS = 5
Curves = Mapping[str, Mapping[int, float]]  # score -> severity -> value; severity 0 is clean


def severity_figure(
    corruptions: Mapping[str, Curves], baseline: Mapping[str, Curves] | None = None
):
    """A small plot per corruption, a line per score (a matplotlib figure).

    Args:
        corruptions: by name; a missing value (NaN) interrupts the line.
        baseline: of another model, drawn dashed.
    """
    rows = -(-max(len(corruptions), 1) // COLUMNS)
    figure, axes = new_figure(rows, COLUMNS, (2.2 * COLUMNS, 1.75 * rows + 0.5), share=True)
    for number, (axis, (name, curves)) in enumerate(zip(axes, corruptions.items())):
        theirs = (baseline or {}).get(name, {})
        for k, (metric, curve) in enumerate(curves.items()):
            colour = TERM_COLOURS[k % len(TERM_COLOURS)]
            axis.plot(list(curve), list(curve.values()), color=colour, linewidth=1.6, marker="o",
                      markersize=3.2, label=metric)  # fmt: skip
            if other := theirs.get(metric):
                axis.plot(list(other), list(other.values()), color=colour, linewidth=1.1,
                          linestyle="--", alpha=0.8)  # fmt: skip
        axis.set_title(title_of(name), loc="left", fontsize=9, color=INK)
        axis.set_xticks(range(1 + max((s for c in curves.values() for s in c), default=0)))
        axis.set_ylim(bottom=0)
        axis.tick_params(labelbottom=number + COLUMNS >= len(corruptions))  # nothing below it
    for axis in axes[len(corruptions) :]:
        axis.set_visible(False)
    if axes[0].lines:
        lines = [line for line in axes[0].lines if line.get_linestyle() == "-"]
        figure.legend(handles=lines, frameon=False, fontsize=9, labelcolor=INK, ncols=len(lines),
                      loc="outside upper left")  # fmt: skip
    return figure


def radar_figure(resistance: Mapping[str, Mapping[str, float]], baseline=None):
    """Resistance ability of each corruption, a closed line per score (a matplotlib figure).

    Args:
        resistance: score -> corruption -> M(corrupted) / M(clean); the circle at 1 is the clean
            model.
        baseline: the same of another model, drawn dashed.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8.2, 5.6), layout="constrained")
    FigureCanvasAgg(figure)
    axis: Any = figure.add_subplot(projection="polar")
    names = list(next(iter(resistance.values()), {}))
    angle = np.linspace(0, 2 * np.pi, len(names), endpoint=False)
    around = np.append(angle, angle[:1])
    highest = 1.0
    for k, (metric, row) in enumerate(resistance.items()):
        colour = TERM_COLOURS[k % len(TERM_COLOURS)]
        values = np.array([row.get(name, np.nan) for name in names])
        axis.plot(around, np.append(values, values[:1]), color=colour, linewidth=1.8, marker="o",
                  markersize=3.5, label=metric)  # fmt: skip
        axis.fill(around, np.nan_to_num(np.append(values, values[:1])), color=colour, alpha=0.07)
        highest = max(highest, np.nanmax(values, initial=0))
        if other := (baseline or {}).get(metric):
            theirs = np.array([other.get(name, np.nan) for name in names])
            axis.plot(around, np.append(theirs, theirs[:1]), color=colour, linewidth=1.1,
                      linestyle="--", alpha=0.8)  # fmt: skip
    axis.plot(np.linspace(0, 2 * np.pi, 181), np.ones(181), color=INK, linewidth=1.0, alpha=0.6)
    axis.set_theta_zero_location("N")
    axis.set_theta_direction(-1)
    axis.set_ylim(0, min(highest * 1.02, 1.5))
    axis.set_yticks([0.25, 0.5, 0.75, 1.0], ["0.25", "0.5", "0.75", "clean"])
    axis.set_rlabel_position(180 / max(len(names), 1))
    axis.set_xticks(angle, [title_of(name) for name in names])
    axis.tick_params(axis="x", labelcolor=INK, labelsize=9, pad=2)
    axis.tick_params(axis="y", labelcolor=INK, labelsize=7.5)
    _align_outwards(axis, angle)
    axis.grid(True, color=FAINT, linewidth=0.7)
    axis.spines["polar"].set_visible(False)
    axis.set_facecolor("none")
    figure.legend(frameon=False, fontsize=9, labelcolor=INK, loc="outside right upper")
    return figure


def _align_outwards(axis, angle: np.ndarray) -> None:
    """Labels on the right start at their spoke, those on the left end there."""
    for label, a in zip(axis.get_xticklabels(), angle):
        sine = np.sin(a)
        label.set_horizontalalignment(
            "center" if abs(sine) < 0.1 else "left" if sine > 0 else "right"
        )
