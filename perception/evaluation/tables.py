"""Metrics for people: tables for the terminal and CSV files for the run folder."""

from __future__ import annotations

import csv
import math
import os
from collections.abc import Iterable, Sequence
from pathlib import Path

from rich.table import Table

from .detection import DetectionMetrics
from .detection_errors import ERRORS
from .map import MapMetrics
from .occupancy import MASK_TEXTS, OccupancyMetrics
from .tracking import METRICS, SUMMED, TrackingMetrics

ERROR_HEADINGS = {
    "trans_err": "ATE m",
    "scale_err": "ASE",
    "orient_err": "AOE rad",
    "vel_err": "AVE m/s",
    "attr_err": "AAE",
}
MOVING_HEADING = "AVE moving"
TRACKING_HEADINGS = {
    "amotp": "AMOTP m", "motp": "MOTP m", "tid": "TID s", "lgd": "LGD s",
}  # fmt: skip
Row = list[str | float | int]


def detection_tables(metrics: DetectionMetrics) -> list[Table]:
    """Per class AP, errors, and AP by distance; each fits a terminal of 80 columns."""
    head, rows = detection_rows(metrics)
    first_error = head.index(next(iter(ERROR_HEADINGS.values())))
    title = f"Detection: mAP {metrics.mean_ap:.4f}, NDS {metrics.nd_score:.4f}"
    return [
        _table(title, head[:first_error], [row[:first_error] for row in rows]),
        _table(
            "Errors of the boxes found within 2 m",
            [head[0], *head[first_error:]],
            [[row[0], *row[first_error:]] for row in rows],
        ),
        _table("AP by distance from the vehicle", *range_rows_of(metrics)),
    ]


def map_table(metrics: MapMetrics) -> Table:
    """IoU of every class at its best threshold."""
    head, rows = map_rows(metrics)
    return _table(f"Map: mIoU {metrics.mean_iou:.4f}", head[:3], [row[:3] for row in rows])


def tracking_tables(metrics: TrackingMetrics) -> list[Table]:
    """Accuracy by class, and what went wrong; each fits a terminal of 80 columns."""
    head, rows = tracking_rows(metrics)
    main = ["class", "boxes", "tracks", "AMOTA", "AMOTP m", "MOTA", "MOTP m", "RECALL"]
    counts = ["class", "TP", "FP", "FN", "IDS", "FRAG", "MT", "ML", "TID s", "LGD s"]
    title = f"Tracking: AMOTA {metrics.amota:.4f}, AMOTP {metrics.amotp:.3f} m"
    return [
        _table(name, columns, [[row[head.index(c)] for c in columns] for row in rows])
        for name, columns in (
            (title, main),
            ("At the score threshold with the best MOTA of each class", counts),
        )
    ]


def tracking_rows(metrics: TrackingMetrics) -> tuple[list[str], list[Row]]:
    """Heading, a row per class, and all classes together."""
    names = [TRACKING_HEADINGS.get(metric, metric.upper()) for metric in METRICS]
    classes = list(metrics.num_truth)

    def row(name: str, boxes: int, tracks: int, values: dict[str, float]) -> Row:
        return [name, boxes, tracks, *(_whole(m, values[m]) for m in METRICS)]

    rows = [
        row(
            name,
            metrics.num_truth[name],
            metrics.num_tracks[name],
            {metric: metrics.label_metrics[metric][name] for metric in METRICS},
        )
        for name in classes
    ]
    boxes, tracks = sum(metrics.num_truth.values()), sum(metrics.num_tracks.values())
    rows.append(row("all", boxes, tracks, {m: metrics.overall(m) for m in METRICS}))
    return ["class", "boxes", "tracks", *names], rows


def detection_rows(metrics: DetectionMetrics) -> tuple[list[str], list[Row]]:
    """Heading, a row per class, and the means (with NaN where a figure has no meaning)."""
    thresholds = list(next(iter(metrics.label_aps.values())))
    head = ["class", "boxes", "AP", *(f"AP {t:g} m" for t in thresholds)]
    head += [*ERROR_HEADINGS.values(), MOVING_HEADING]
    rows: list[Row] = [
        [
            name,
            metrics.num_truth[name],
            metrics.mean_dist_aps[name],
            *aps.values(),
            *(metrics.label_tp_errors[name][error] for error in ERRORS),
            metrics.moving_vel_errors[name],
        ]
        for name, aps in metrics.label_aps.items()
    ]
    by_threshold = [_mean(aps[t] for aps in metrics.label_aps.values()) for t in thresholds]
    errors = [*(metrics.tp_errors[error] for error in ERRORS), metrics.moving_vel_err]
    boxes = sum(metrics.num_truth.values())
    rows.append(["mean", boxes, metrics.mean_ap, *by_threshold, *errors])
    return head, rows


def range_rows_of(metrics: DetectionMetrics) -> tuple[list[str], list[Row]]:
    """Heading, a row per class and the means: AP in every band of distances."""
    bands = metrics.range_aps
    head = ["class", *(f"{band.near:g}-{band.far:g} m" for band in bands)]
    rows: list[Row] = [
        [name, *(band.label_aps[name] for band in bands)] for name in metrics.label_aps
    ]
    return head, [*rows, ["mean", *(band.mean_ap for band in bands)]]


def map_rows(metrics: MapMetrics) -> tuple[list[str], list[Row]]:
    """Heading, a row per class and the mean: IoU at the best and at every threshold."""
    thresholds = list(next(iter(metrics.ious.values())))
    head = ["class", "IoU", "at", *(f"IoU {t:.2f}" for t in thresholds)]
    rows: list[Row] = [
        [name, metrics.label_ious[name], metrics.best_thresholds[name], *row.values()]
        for name, row in metrics.ious.items()
    ]
    means = [_mean(row[t] for row in metrics.ious.values()) for t in thresholds]
    return head, [*rows, ["mean", metrics.mean_iou, math.nan, *means]]


def occupancy_tables(metrics: OccupancyMetrics) -> list[Table]:
    """IoU by class under each mask, RayIoU by class; the mask stands beside every number."""
    head, rows = occupancy_rows(metrics)
    split = 1 + len(metrics.ious)
    title = (
        f"Occupancy: mIoU {metrics.mean_iou():.4f} ({MASK_TEXTS['camera']}), "
        f"RayIoU {metrics.ray_iou:.4f} (all rays, no mask)"
    )
    return [
        _table(title, head[:split], [row[:split] for row in rows]),
        _table(
            f"Occupancy: RayIoU {metrics.ray_iou:.4f} (all rays, no mask)",
            [head[0], *head[split:]],
            [[row[0], *row[split:]] for row in rows],
        ),
    ]


def occupancy_rows(metrics: OccupancyMetrics) -> tuple[list[str], list[Row]]:
    """Heading, a row per class, IoU of occupied against free, and the means."""
    head = ["class", *(f"IoU, {MASK_TEXTS[mask]}" for mask in metrics.ious)]
    head += [f"RayIoU {t:g} m" for t in metrics.ray_ious]
    by_column = [*metrics.ious.values(), *metrics.ray_ious.values()]
    rows: list[Row] = [[name, *(c[name] for c in by_column)] for name in by_column[0]]
    nothing = [math.nan] * len(metrics.ray_ious)
    rows.append(["occupied", *metrics.occupied_ious.values(), *nothing])
    rays = [metrics.mean_ray_iou(t) for t in metrics.ray_ious]
    rows.append(["mean over classes", *(metrics.mean_iou(m) for m in metrics.ious), *rays])
    return head, rows


def write_csv(path: Path | str, head: Sequence[str], rows: Iterable[Row]) -> None:
    """Write a table; NaN becomes an empty cell. The file appears complete or not at all."""
    path = Path(path)
    partial = path.with_name(path.name + ".partial")
    with partial.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(head)
        writer.writerows(["" if _is_nan(cell) else cell for cell in row] for row in rows)
    os.replace(partial, path)


def _table(title: str, head: Sequence[str], rows: Sequence[Row]) -> Table:
    table = Table(title=title, title_justify="left")
    for number, name in enumerate(head):
        table.add_column(name, justify="right" if number else "left")
    for number, row in enumerate(rows):
        # A line before the last row, the means.
        table.add_row(*map(_text, row), end_section=number == len(rows) - 2)
    return table


def _text(cell: str | float | int) -> str:
    if _is_nan(cell):
        return "–"
    return f"{cell:.3f}" if isinstance(cell, float) else str(cell)


def _whole(metric: str, value: float) -> float | int:
    """Counts as whole numbers."""
    return int(value) if metric in SUMMED and not math.isnan(value) else value


def _is_nan(cell: str | float | int) -> bool:
    return isinstance(cell, float) and math.isnan(cell)


def _mean(values: Iterable[float]) -> float:
    values = list(values)
    return sum(values) / len(values)
