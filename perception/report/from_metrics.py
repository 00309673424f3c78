"""The sections that show metrics, from what evaluation gives."""

from __future__ import annotations

import math

from ..evaluation.detection import THRESHOLDS, DetectionMetrics
from ..evaluation.detection_errors import ERRORS
from ..evaluation.map import MapMetrics
from ..evaluation.occupancy import OccupancyMetrics
from ..evaluation.tables import occupancy_rows
from ..evaluation.tracking import SUMMED, TrackingMetrics
from .sections import Agreement, AgreementRow, ClassResult, DetectionTable, MapTable, Table


def detection_section(metrics: DetectionMetrics) -> DetectionTable:
    """AP, errors and number of annotated boxes of every class."""
    classes = {
        name: ClassResult(
            tuple(aps[threshold] for threshold in THRESHOLDS),
            tuple(metrics.label_tp_errors[name][error] for error in ERRORS),
            metrics.num_truth.get(name, 0),
        )
        for name, aps in metrics.label_aps.items()
    }
    errors = tuple(metrics.tp_errors[error] for error in ERRORS)
    return DetectionTable(classes, THRESHOLDS, metrics.mean_ap, errors)


def distance_section(metrics: DetectionMetrics) -> Table:
    """AP of every class in each band of distances."""
    bands = {f"{band.near:g}–{band.far:g} m": band for band in metrics.range_aps}
    rows: dict[str, dict[str, float | str]] = {
        name: {label: band.label_aps[name] for label, band in bands.items()}
        for name in metrics.label_aps
    }
    rows["mean"] = {label: band.mean_ap for label, band in bands.items()}
    note = "AP of the boxes at this distance from the vehicle; n/a: no annotated box there."
    return Table("Detection by distance", rows, note, short="Distance")


def map_section(metrics: MapMetrics) -> MapTable:
    """IoU of every class at its best threshold."""
    return MapTable(metrics.label_ious, metrics.best_thresholds, metrics.mean_iou)


def tracking_section(metrics: TrackingMetrics) -> Table:
    """AMOTA and what it is made of, for every class and all together."""
    names = {"AMOTA": "amota", "AMOTP m": "amotp", "MOTA": "mota", "recall": "recall",
             "switches": "ids", "fragments": "frag", "false": "fp", "missed": "fn"}  # fmt: skip

    def cell(metric: str, value: float) -> float:
        return int(value) if metric in SUMMED and not math.isnan(value) else value

    rows: dict[str, dict[str, float | str]] = {
        name: {title: cell(m, metrics.label_metrics[m][name]) for title, m in names.items()}
        for name in metrics.num_truth
    }
    rows["all"] = {title: cell(m, metrics.overall(m)) for title, m in names.items()}
    note = (
        "The detections, followed from frame to frame by the default tracker. Counts are those at "
        "the score with the best MOTA; n/a: no annotated object of the class."
    )
    return Table("Tracking by class", rows, note, bars=False, short="Tracking")


def occupancy_section(metrics: OccupancyMetrics) -> Table:
    """IoU by class under each mask, and RayIoU at each depth."""
    head, lines = occupancy_rows(metrics)
    rows: dict[str, dict[str, float | str]] = {
        str(line[0]): {name: float(cell) for name, cell in zip(head[1:], line[1:])}
        for line in lines
    }
    note = (
        "The mask, that is which voxels count, stands above each column. RayIoU has none: it "
        "counts every ray that meets something. n/a: the class does not occur."
    )
    return Table("Occupancy by class", rows, note, short="Occupancy")


def agreement_section(
    ours: DetectionMetrics, mean_ap: float, nd_score: float, tp_errors: dict[str, float]
) -> Agreement:
    """Our metrics against the devkit's ``mean_ap``, ``nd_score`` and ``tp_errors``."""
    rows = [
        AgreementRow("mAP", ours.mean_ap, mean_ap),
        AgreementRow("NDS", ours.nd_score, nd_score),
    ]
    rows += [AgreementRow(_short(e), ours.tp_errors[e], tp_errors[e]) for e in ERRORS]
    return Agreement(tuple(rows))


def _short(error: str) -> str:
    """``"trans_err"`` -> ``"mATE"``."""
    return f"mA{error[0].upper()}E"
