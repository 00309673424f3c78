"""Loss curves and precision over recall, as SVG that takes on the page's colours, or as PNG."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ...datasets.nuscenes.classes import DETECTION_CLASSES
from .style import LIGHT, hex_code, title_of

LEADING = ("step", "epoch", "lr", "total")  # columns of losses.csv before the loss terms
# Used for nothing else, so that `to_svg` can replace them by the colours of the page.
INK, FAINT = "#1b2431", "#d5dbe5"
MAX_POINTS = 800  # of a curve; more cannot be seen
TERM_COLOURS = (
    "#2f7ed8",
    "#e2762b",
    "#1f9e77",
    "#c2518f",
    "#8a63d2",
    "#b08b00",
    "#d04a3a",
    "#5b7a99",
)


def read_losses(path: Path | str) -> dict[str, NDArray[np.float64]]:
    """``losses.csv`` as columns, in the file's order; an empty or broken field is NaN."""
    with Path(path).open(newline="") as file:
        reader = csv.DictReader(file)
        rows, names = list(reader), list(reader.fieldnames or [])
    return {name: np.array([_number(row[name]) for row in rows]) for name in names}


def loss_figure(losses: Mapping[str, NDArray]):
    """Total loss, its terms, and the learning rate over the steps (a matplotlib figure)."""
    step = losses["step"]
    figure, axes = new_figure(1, 3, (11.0, 3.4), widths=(1.0, 1.5, 0.8))
    _curve(axes[0], step, losses["total"], TERM_COLOURS[0], "total")
    axes[0].set_title("total loss", loc="left")
    for k, name in enumerate(name for name in losses if name not in LEADING):
        _curve(axes[1], step, losses[name], TERM_COLOURS[k % len(TERM_COLOURS)], title_of(name))
    axes[1].set_title("loss terms", loc="left")
    if axes[1].lines:
        axes[1].legend(
            frameon=False, fontsize=8, labelcolor=INK, ncols=3,
            loc="upper center", bbox_to_anchor=(0.5, -0.22),  # below: curves fill the axes
        )  # fmt: skip
        axes[1].set_yscale("log")
        _plain_decades(axes[1].yaxis)
    axes[2].plot(step, losses["lr"], color=TERM_COLOURS[1], linewidth=1.6)
    axes[2].set_title("learning rate", loc="left")
    axes[2].yaxis.set_major_formatter("{x:g}")
    for axis in axes:
        axis.set_xlabel("step")
    return figure


def precision_recall_figure(recall: NDArray, precision: Mapping[str, NDArray]):
    """Precision over recall, one small plot per class (a matplotlib figure).

    Args:
        recall: (R,) common to all.
        precision: class name -> (T, R) or (R,); with T thresholds, the strictest is the faintest.
    """
    columns = min(5, max(len(precision), 1))
    rows = -(-max(len(precision), 1) // columns)
    figure, axes = new_figure(rows, columns, (2.2 * columns, 1.9 * rows), share=True)
    for axis, (name, curves) in zip(axes, precision.items()):
        curves = np.atleast_2d(curves)
        for k, curve in enumerate(curves):
            opacity = 0.25 + 0.75 * (k + 1) / len(curves)
            axis.plot(recall, curve, color=_class_colour(name), linewidth=1.5, alpha=opacity)
        axis.set_title(title_of(name), loc="left", fontsize=9)
        axis.set_xlim(0, 1)
        axis.set_ylim(0, 1.02)
    for axis in axes[len(precision) :]:
        axis.set_visible(False)
    return figure


def average_precision_figure(average_precision: Mapping[str, float]):
    """Horizontal bars of AP per class (a matplotlib figure)."""
    figure, (axis,) = new_figure(1, 1, (6.0, 0.32 * len(average_precision) + 0.8))
    names, values = list(average_precision), np.array(list(average_precision.values()), float)
    rows = np.arange(len(names))[::-1]
    axis.barh(rows, np.nan_to_num(values), color=[_class_colour(n) for n in names], height=0.62)
    for row, value in zip(rows, values):
        text = "n/a" if np.isnan(value) else f"{value:.3f}"
        axis.text(np.nan_to_num(value) + 0.01, row, text, color=INK, va="center", fontsize=9)
    axis.set_yticks(rows, [title_of(name) for name in names])
    axis.set_xlim(0, 1.08)
    axis.set_xlabel("AP")
    axis.grid(False, axis="y")
    return figure


def to_svg(figure, name: str, label: str = "") -> str:
    """The figure as an ``<svg>`` element to stand in an HTML page.

    Args:
        figure: from one of the functions above.
        name: makes the element's ids unique in the page.
        label: says what is seen to those who cannot see it.
    """
    import matplotlib

    text = io.StringIO()
    # No date, no creator: the same data gives the same bytes.
    metadata = dict.fromkeys(("Date", "Creator", "Format", "Type"))
    with matplotlib.rc_context({"svg.hashsalt": name, "svg.fonttype": "none"}):
        figure.savefig(text, format="svg", metadata=metadata, transparent=True)
    svg = text.getvalue()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r'\s(?:xmlns(?::xlink)?|version)="[^"]*"', "", svg, count=3)
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    # The id of a clip path is made from an address in memory.
    for number, clip in enumerate(re.findall(r'<clipPath id="(p[0-9a-f]{10})"', svg)):
        svg = svg.replace(clip, f"clip-{number}")
    # Ids are only unique in one figure: `figure_1` and `axes_1` are in every one.
    svg = re.sub(r'(\bid="|href="#|url\(#)', rf"\g<1>{name}-", svg).replace("xlink:href", "href")
    svg = re.sub(r'<svg [^>]*?(viewBox="[^"]*")[^>]*>', rf"<svg {_aria(label)} \1>", svg, count=1)
    svg = re.sub(r"font: ([^;\"]*?px) [^;\"]*", r"font: \1 var(--sans, sans-serif)", svg)
    return svg.replace(INK, "currentColor").replace(FAINT, "var(--line)").strip()


def to_png(figure, dpi: int = 150) -> bytes:
    """The figure as a PNG file on white."""
    data = io.BytesIO()
    figure.savefig(data, format="png", dpi=dpi, facecolor="white")
    return data.getvalue()


def _aria(label: str) -> str:
    from html import escape

    return f'role="img" aria-label="{escape(label, quote=True)}"' if label else 'aria-hidden="true"'


def new_figure(
    rows: int, columns: int, size: tuple[float, float], widths=None, share: bool = False
):
    """A figure on no canvas of a window system, in the house style, and its axes in a list."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=size, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(
        rows, columns, squeeze=False, width_ratios=widths, sharex=share, sharey=share
    )
    for axis in axes.flat:
        axis.spines[["top", "right"]].set_visible(False)
        axis.spines[["left", "bottom"]].set_color(FAINT)
        axis.tick_params(color=FAINT, labelcolor=INK, labelsize=8)
        axis.grid(True, color=FAINT, linewidth=0.6)
        axis.set_axisbelow(True)
        axis.title.set_color(INK)
        for label in (axis.xaxis.label, axis.yaxis.label):
            label.set_color(INK)
            label.set_size(8)
        for title in (axis._left_title, axis.title):
            title.set(color=INK, size=10)
        axis.set_facecolor("none")
    return figure, list(axes.flat)


def _plain_decades(axis) -> None:
    from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

    axis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0), numticks=8))
    axis.set_minor_locator(NullLocator())
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))


def _curve(axis, step: NDArray, values: NDArray, colour: str, label: str) -> None:
    """The values faintly, their running mean over about 2 % of the steps on top."""
    stride = -(-len(step) // MAX_POINTS) or 1
    shown = slice(len(step) % stride, None, stride)
    axis.plot(step[shown], values[shown], color=colour, linewidth=0.7, alpha=0.25)
    axis.plot(step[shown], _smooth(values)[shown], color=colour, linewidth=1.6, label=label)


def _smooth(values: NDArray) -> NDArray[np.float64]:
    memory = max(1.0, len(values) / 50)
    smooth, total, weight = np.empty(len(values)), 0.0, 0.0
    for i, value in enumerate(values):
        if np.isfinite(value):
            total += (value - total) / memory if weight else value
            weight = 1.0
        smooth[i] = total if weight else np.nan
    return smooth


def _class_colour(name: str) -> str:
    known = DETECTION_CLASSES.index(name) if name in DETECTION_CLASSES else -1
    return hex_code(LIGHT.of_class(known))


def _number(text: str | None) -> float:
    try:
        return float(text or "nan")
    except ValueError:
        return float("nan")
