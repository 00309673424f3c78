"""Run a model over a data set, measure it, and leave the results in a folder."""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, cast

import numpy as np
from numpy.typing import NDArray
from rich.console import Console

from ...datasets.boxes import Boxes3D, Detections
from ...datasets.errors import DataError
from ...datasets.occupancy import OccupancyLabels
from .affinities import Linker, write_affinities
from .boxes import GlobalBoxes
from .detection import DetectionMetrics, evaluate_detections
from .ground_truth import AnnotationReader, TrackingTruth, tracking_truth
from .map import MapIoU, MapMetrics
from .occupancy import OccupancyEvaluation, OccupancyMetrics
from .occupancy_truth import FrameReader, OccupancyTruth
from .submission import read_submission, submission_meta, write_submission
from .tables import (
    detection_rows,
    detection_tables,
    map_rows,
    map_table,
    occupancy_rows,
    occupancy_tables,
    range_rows_of,
    tracking_rows,
    tracking_tables,
    write_csv,
)
from .tracking import TrackingMetrics, evaluate_tracks
from .tracking_submission import write_tracking_submission
from .tracks import Timeline

if TYPE_CHECKING:
    from ..tracking import TrackedDetections

SUBMISSION = "submission.json"
TRACKS = "tracks.json"
METRICS = "metrics.json"
AFFINITIES = "affinities.safetensors"


class Model(Protocol):
    """The part of ``FusionModel`` that is needed here (any torch module that offers it)."""

    @property
    def training(self) -> bool: ...

    def __call__(self, batch: Any, *, use_camera: bool, use_lidar: bool) -> dict: ...

    def decode(self, outputs: dict, batch: Any) -> dict:
        """``{"detection": list[Detections], "map": (B, K, X, Y) tensor, "occupancy":
        OccupancyVolume, "tracks": list[TrackedDetections], "affinity": list[LinkedFrame]}``;
        each may lack."""
        ...

    def train(self, mode: bool = True) -> Any: ...


@dataclass(frozen=True)
class EvaluationMetrics:
    """What an evaluation found out; a task that the model or the data lacks is None."""

    detection: DetectionMetrics | None
    map: MapMetrics | None
    occupancy: OccupancyMetrics | None
    num_frames: int  # in the split
    skipped: tuple[str, ...]  # tokens of the frames that could not be read
    seconds: float
    tracking: TrackingMetrics | None = None  # of the model's tracks, or the default tracker's

    def headline(self) -> dict[str, float]:
        """The main figures of every task, larger being better: what tables of runs compare."""
        found = {}
        if self.detection:
            found |= {"mAP": self.detection.mean_ap, "NDS": self.detection.nd_score}
        if self.map:
            found["map mIoU"] = self.map.mean_iou
        if self.occupancy:
            found["occupancy mIoU"] = self.occupancy.mean_iou()
            found["occupancy RayIoU"] = self.occupancy.ray_iou
        if self.tracking:
            found["AMOTA"] = self.tracking.amota
        return {name: value for name, value in found.items() if not math.isnan(value)}

    def to_json(self) -> dict:
        """``detection.mAP``, ``map.mIoU``, ``occupancy.mIoU``, ``tracking.AMOTA``, ... first."""
        content: dict[str, Any] = {}
        if self.detection:
            headline = {"mAP": self.detection.mean_ap, "NDS": self.detection.nd_score}
            content["detection"] = headline | self.detection.to_json()
        if self.map:
            content["map"] = self.map.to_json()
        if self.occupancy:
            content["occupancy"] = self.occupancy.to_json()
        if self.tracking:
            content["tracking"] = self.tracking.headline() | self.tracking.to_json()
        frames = {"total": self.num_frames, "skipped": list(self.skipped)}
        return content | {"frames": frames, "seconds": {"evaluate": self.seconds}}

    def print(self, console: Console | None = None) -> None:
        """Tables for the terminal."""
        if console is None:
            console = Console()
        for table in detection_tables(self.detection) if self.detection else ():
            console.print(table)
        if self.map:
            console.print(map_table(self.map))
        for table in occupancy_tables(self.occupancy) if self.occupancy else ():
            console.print(table)
        for table in tracking_tables(self.tracking) if self.tracking else ():
            console.print(table)
        if self.skipped:
            console.print(
                f"{len(self.skipped)} of {self.num_frames} frames could not be read and count as "
                f"frames without detections; the first is {self.skipped[0]}"
            )


@dataclass
class Predictions:
    """What a model said about a data set."""

    detections: dict[str, Detections] = field(default_factory=dict)  # by sample token
    tracks: dict[str, TrackedDetections] = field(default_factory=dict)  # of a model that tracks
    global_from_bev: dict[str, NDArray] = field(default_factory=dict)
    has_detection: bool = False
    map: MapIoU | None = None
    occupancy: OccupancyEvaluation | None = None
    linked: Linker = field(default_factory=Linker)


def evaluate_model(
    model: Model,
    loader: Iterable,
    reader: AnnotationReader,
    run_folder: Path | str,
    *,
    use_camera: bool = True,
    use_lidar: bool = True,
    progress: Callable[[int, int], None] | None = None,
) -> EvaluationMetrics:
    """Measure a model and write ``submission.json``, ``metrics.json`` and CSV tables.

    Detections are also tracked, where the frames make scenes and the model does not do it, and
    leave ``tracks.json``. What an affinity head says of them stays beside them in
    ``affinities.safetensors``.

    Args:
        model: see ``Model``; run in evaluation mode, on the device of its parameters.
        loader: gives each frame of the reader in batches: a ``Batch``, or, with unreadable frames
            skipped, what ``collate_counting`` returns. A frame that it never gives counts as
            skipped, and has an empty list in the submission.
        reader: of the same frames, for the ground truth.
        run_folder: made if missing.
        use_camera: give the model the images.
        use_lidar: give the model the points.
        progress: called with the number of frames done and in all.

    Raises:
        DataError: if the loader gives a frame that the reader does not know, or none at all.
    """
    start, run_folder = time.monotonic(), Path(run_folder)
    tokens = tuple(reader.tokens)
    truth = OccupancyTruth(cast(FrameReader, reader))
    found = predict(model, loader, tokens, use_camera, use_lidar, progress, truth)
    skipped = tuple(token for token in tokens if token not in found.global_from_bev)
    if len(skipped) == len(tokens):
        raise DataError("no frame could be evaluated: the loader gave none of the reader's frames")
    run_folder.mkdir(parents=True, exist_ok=True)
    detection, tracking = None, None
    meta = submission_meta(use_camera, use_lidar)
    if found.has_detection:
        submission = run_folder / SUBMISSION
        _write_detections(submission, tokens, found, meta)
        affinities = found.linked.affinities(tokens)
        (run_folder / AFFINITIES).unlink(missing_ok=True)
        if affinities.pairs:
            write_affinities(run_folder / AFFINITIES, affinities, submission)
        # Measured is the file as it was written; nothing, where there are no annotations.
        if reader.global_annotations(0) is not None:
            boxes, truth = read_submission(submission, tokens), tracking_truth(reader)
            detection = evaluate_detections(boxes, truth.annotations)
            tracking = _track(run_folder / TRACKS, found, boxes, truth, meta)
    measured_map = found.map.compute() if found.map and found.map.num_samples else None
    voxels = found.occupancy.compute() if found.occupancy else None
    seconds = time.monotonic() - start
    metrics = EvaluationMetrics(
        detection, measured_map, voxels, len(tokens), skipped, seconds, tracking
    )
    write_metrics(run_folder, metrics)
    return metrics


def predict(
    model: Model,
    loader: Iterable,
    tokens: Sequence[str],
    use_camera: bool = True,
    use_lidar: bool = True,
    progress: Callable[[int, int], None] | None = None,
    occupancy: OccupancyTruth | None = None,
) -> Predictions:
    """Run the model over a loader (see ``evaluate_model``); a frame that comes again is ignored.

    A model with memory sees the frames as a stream, in the loader's order. Occupancy is measured
    at once, since it is large; without ``occupancy`` it is left out.
    """
    import torch

    from ..memory.stream import Stream

    found, known, was_training = Predictions(), set(tokens), model.training
    device, stream = _device_of(model), Stream(model)
    model.train(False)
    try:
        with torch.inference_mode():
            for item in loader:
                batch = item[0] if isinstance(item, tuple) else item
                if batch is None:  # nothing in it could be read
                    continue
                unknown = set(batch.tokens) - known
                if unknown:
                    raise DataError(f"frame {min(unknown)} is not among the reader's frames")
                moved = batch.to(device)
                outputs = stream(moved, use_camera=use_camera, use_lidar=use_lidar)
                decoded = model.decode(outputs, moved)
                if "affinity" in decoded:
                    head = cast(Any, model).heads["affinity"]
                    for token, frame in zip(batch.tokens, decoded["affinity"], strict=True):
                        if token not in found.global_from_bev:
                            found.linked.add(head, token, frame)
                _keep(found, decoded, batch, occupancy)
                if progress:
                    progress(len(found.global_from_bev), len(tokens))
    finally:
        model.train(was_training)
    return found


def write_metrics(run_folder: Path | str, metrics: EvaluationMetrics) -> None:
    """Write ``metrics.json`` and the CSV tables."""
    run_folder = Path(run_folder)
    if metrics.detection:
        write_csv(run_folder / "detection.csv", *detection_rows(metrics.detection))
        write_csv(run_folder / "detection_by_range.csv", *range_rows_of(metrics.detection))
    if metrics.map:
        write_csv(run_folder / "map.csv", *map_rows(metrics.map))
    if metrics.occupancy:
        write_csv(run_folder / "occupancy.csv", *occupancy_rows(metrics.occupancy))
    if metrics.tracking:
        write_csv(run_folder / "tracking.csv", *tracking_rows(metrics.tracking))
    partial = run_folder / (METRICS + ".partial")
    text = json.dumps(metrics.to_json(), indent=2, allow_nan=False)
    partial.write_text(text + "\n", encoding="utf-8")
    os.replace(partial, run_folder / METRICS)


def _keep(found: Predictions, decoded: dict, batch: Any, occupancy: OccupancyTruth | None) -> None:
    """Store a batch's results; frames that a sampler repeated are counted once."""
    fresh = []
    for i, token in enumerate(batch.tokens):
        fresh.append(token not in found.global_from_bev)
        if fresh[-1]:
            found.global_from_bev[token] = batch.global_from_bev[i].cpu().numpy()
            if "detection" in decoded:
                found.has_detection = True
                found.detections[token] = decoded["detection"][i]
            if "tracks" in decoded:
                found.tracks[token] = decoded["tracks"][i]
    if "map" in decoded and batch.map_masks is not None:
        probabilities = decoded["map"]
        found.map = found.map or MapIoU(probabilities.shape[1])
        valid = batch.map_valid.cpu().numpy() & np.array(fresh, bool)
        masks = batch.map_masks.cpu().numpy()
        found.map.update(probabilities.float().cpu().numpy(), masks, valid)
    if "occupancy" in decoded and occupancy is not None:
        volume = decoded["occupancy"]
        for token, semantics, first in zip(batch.tokens, volume.semantics.cpu().numpy(), fresh):
            if first and (labels := occupancy.labels(token)) is not None:
                found.occupancy = found.occupancy or OccupancyEvaluation()
                seen = np.ones_like(semantics)
                bev_from_ego = occupancy.frame(token).bev_from_ego
                predicted = OccupancyLabels(semantics, seen, seen, volume.grid, bev_from_ego)
                found.occupancy.update(predicted, labels, occupancy.ray_origins(token))


def _write_detections(
    path: Path, tokens: Sequence[str], found: Predictions, meta: dict[str, bool]
) -> None:
    nothing = Detections(Boxes3D.empty(), np.zeros(0), np.zeros(0, np.int64))
    detections = [found.detections.get(token, nothing) for token in tokens]
    transforms = np.stack([found.global_from_bev.get(token, np.eye(4)) for token in tokens])
    write_submission(path, tokens, detections, transforms, meta)


def _track(
    path: Path,
    found: Predictions,
    boxes: GlobalBoxes,
    truth: TrackingTruth,
    meta: dict[str, bool],
) -> TrackingMetrics | None:
    """Metrics of the tracks that the model gave, of the default tracker on its boxes otherwise.

    None where no scene has a second frame, or no object.
    """
    from ..tracking import KalmanTracker
    from ..tracking.scenes import track_scenes, tracks_in_global

    tokens = truth.annotations.tokens
    if len(np.unique(truth.scene)) == len(truth.scene):
        return None
    if found.tracks:
        sample_of = {token: i for i, token in enumerate(tokens)}
        samples = [sample_of[token] for token in found.tracks]
        transforms = [found.global_from_bev[token] for token in found.tracks]
        tracked = tracks_in_global([*found.tracks.values()], samples, transforms)
    else:
        time, affinities = (
            Timeline(truth.scene, truth.timestamp_us),
            found.linked.affinities(tokens),
        )
        tracked = track_scenes(KalmanTracker(), boxes, time, affinities)
    write_tracking_submission(path, tokens, tracked, meta)
    metrics = evaluate_tracks(tracked, truth)
    return metrics if sum(metrics.num_truth.values()) else None


def _device_of(model: Any) -> Any:
    parameter = next(model.parameters(), None) if hasattr(model, "parameters") else None
    return "cpu" if parameter is None else parameter.device
