"""Metrics during training: what a validation collects, and the table of sensor sets."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from rich.table import Table

from ...datasets.batch import Batch
from ...datasets.boxes import Detections
from ..evaluation.boxes import GlobalBoxes, upright_in_global
from ..evaluation.detection import evaluate_detections
from ..evaluation.ground_truth import GroundTruth
from ..evaluation.map import MapIoU
from ..evaluation.occupancy import OccupancyIoU, mean_of_known

MAIN_METRICS = ("detection/NDS", "map/mIoU", "occupancy/mIoU")  # their mean ranks checkpoints


@dataclass(frozen=True)
class SensorSet:
    """Which sensors the model is given."""

    name: str
    camera: bool
    lidar: bool


EVERYTHING = SensorSet("camera + LiDAR", True, True)
ABLATION = (EVERYTHING, SensorSet("camera", True, False), SensorSet("LiDAR", False, True))


class Validation:
    """Collects decoded outputs of some batches; gives nuScenes' metrics of them."""

    def __init__(self) -> None:
        self.boxes: dict[str, GlobalBoxes] = {}  # predicted, by sample token
        self.map: MapIoU | None = None
        self.occupancy: OccupancyIoU | None = None

    def add(self, decoded: Mapping[str, Any], batch: Batch) -> None:
        """Add what ``model.decode`` gave for a batch."""
        transforms = batch.global_from_bev.cpu().numpy()
        for token, found, transform in zip(batch.tokens, decoded.get("detection", ()), transforms):
            self.boxes[token] = predicted_boxes(found, transform)
        if "map" in decoded and batch.map_masks is not None:
            probabilities = decoded["map"].float().cpu().numpy()
            self.map = self.map or MapIoU(probabilities.shape[1])
            masks, valid = batch.map_masks.cpu().numpy(), batch.map_valid.cpu().numpy()
            self.map.update(probabilities, masks, valid)
        if "occupancy" in decoded and (labels := batch.occupancy) is not None:
            self.occupancy = self.occupancy or OccupancyIoU()
            columns = (decoded["occupancy"].semantics, labels.semantics, labels.mask_lidar,
                       labels.mask_camera)  # fmt: skip
            for i in labels.valid.nonzero()[:, 0].tolist():
                self.occupancy.update(*(column[i].cpu().numpy() for column in columns))

    def gathered(self) -> Validation:
        """The same over all processes; every process must call it."""
        if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
            return self
        parts: list[Any] = [None] * torch.distributed.get_world_size()
        torch.distributed.all_gather_object(parts, self)
        whole = Validation()
        for part in parts:
            whole.boxes |= part.boxes
            if part.map is not None:
                whole.map = whole.map or MapIoU(len(part.map.names), part.map.names)
                whole.map.counts += part.map.counts
                whole.map.num_samples += part.map.num_samples
            if part.occupancy is not None:
                whole.occupancy = whole.occupancy or OccupancyIoU()
                whole.occupancy.counts += part.occupancy.counts
                whole.occupancy.num_samples += part.occupancy.num_samples
        return whole

    def metrics(self, truth: GroundTruth | None) -> dict[str, float]:
        """mAP, NDS and mIoU as ``task/metric``, as far as there are labels.

        Occupancy's is that of the voxels seen by a camera.

        Args:
            truth: the annotations of at least the samples that were added; None if there are none.
        """
        values = {}
        if self.boxes and truth is not None:
            detection = evaluate_detections(*_same_samples(self.boxes, truth))
            values["detection/mAP"] = detection.mean_ap
            values["detection/NDS"] = detection.nd_score
        if self.map is not None and self.map.num_samples:
            values["map/mIoU"] = self.map.compute().mean_iou
        if self.occupancy is not None and self.occupancy.num_samples:
            values["occupancy/mIoU"] = mean_of_known(self.occupancy.ious()["camera"].values())
        return values


def score_of(metrics: Mapping[str, float]) -> float | None:
    """One figure to rank checkpoints by: the mean of the tasks' main metrics."""
    known = [metrics[name] for name in MAIN_METRICS if name in metrics]
    return sum(known) / len(known) if known else None


def predicted_boxes(found: Detections, global_from_bev: NDArray, sample: int = 0) -> GlobalBoxes:
    """Detections of one sample in nuScenes' own terms."""
    boxes = upright_in_global(found.boxes, global_from_bev)
    score, not_counted = np.asarray(found.score, np.float64), np.full(len(found), -1, np.int64)
    return GlobalBoxes.of_upright(boxes, sample, score, found.attribute, not_counted)


def _same_samples(
    predicted: Mapping[str, GlobalBoxes], truth: GroundTruth
) -> tuple[GlobalBoxes, GroundTruth]:
    """Predictions and truth of the predicted samples, numbered alike."""
    keep = np.array([i for i, token in enumerate(truth.tokens) if token in predicted], np.int64)
    tokens = tuple(truth.tokens[i] for i in keep)
    number = np.full(len(truth.tokens), -1, np.int64)
    number[keep] = np.arange(len(keep))

    def renumbered(boxes: GlobalBoxes) -> GlobalBoxes:
        sample = number[boxes.sample]
        return replace(boxes, sample=sample)[sample >= 0]

    parts = [
        replace(predicted[token], sample=np.full(len(predicted[token]), i, np.int64))
        for i, token in enumerate(tokens)
    ]
    part_of_truth = GroundTruth(
        tokens, truth.ego_position[keep], renumbered(truth.boxes), renumbered(truth.bike_racks)
    )
    return GlobalBoxes.concatenate(parts), part_of_truth


def metrics_table(title: str, rows: Sequence[tuple[str, Mapping[str, float]]]) -> Table:
    """A table with a line per sensor set and a column per metric."""
    names = list(dict.fromkeys(name for _, metrics in rows for name in metrics))
    table = Table("sensors", *(name.replace("/", " ") for name in names), title=title)
    for label, metrics in rows:
        table.add_row(label, *(f"{metrics[n]:.3f}" if n in metrics else "" for n in names))
    return table
