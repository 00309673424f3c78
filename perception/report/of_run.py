"""The report of a training run: what was run, how good it is, and what that looks like."""

from __future__ import annotations

import platform
import subprocess
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..evaluation.evaluate import TRACKS, EvaluationMetrics
from ..evaluation.tracking_submission import read_tracking_submission
from ..robustness.results import Results
from ..tracking.scenes import timeline
from ..visualize.bev import draw_bev
from ..visualize.cameras import draw_cameras
from ..visualize.curves import read_losses
from ..visualize.occupancy import Voxels, draw_occupancy
from ..visualize.scene import key_points, truth_of
from ..visualize.submission import detections_of
from ..visualize.trails import trails_at
from .content import Card, RunReport
from .from_metrics import (
    agreement_section,
    detection_section,
    distance_section,
    map_section,
    occupancy_section,
    tracking_section,
)
from .of_robustness import stored_results, stored_sections
from .scene_video import scene_video
from .sections import (
    Ablation,
    Commands,
    Configuration,
    FramePicture,
    Gallery,
    LossCurves,
    Section,
    Timings,
    TrackGallery,
)
from .write import write_report

NUM_PICTURES = 4
NUM_TRACK_PICTURES = 2


def write_run_report(
    path: Path,
    run_folder: Path,
    model: Any,
    data: Any,
    config: Any,
    metrics: EvaluationMetrics,
    alone: Mapping[str, EvaluationMetrics],
    devkit: dict | None,
    seconds: Mapping[str, float],
    commands: tuple[str, ...],
) -> None:
    """Write the HTML report of a run.

    Args:
        path: the file to write.
        run_folder: what ``bevstack train`` wrote.
        model: with the trained weights.
        data: a ``NuScenesData``; the frames of its validation split are drawn.
        config: the run's resolved options.
        metrics: of all sensors.
        alone: of each sensor alone, by name; may be empty.
        devkit: the official summary; None if it was not run.
        seconds: by stage.
        commands: that made the run.
    """
    sections: list[Section] = [Timings(seconds)]
    if alone:
        rows = {"camera + LiDAR": metrics.headline()}
        rows |= {name: m.headline() for name, m in alone.items()}
        sections.append(Ablation(rows))
    tracks = run_folder / "evaluation" / TRACKS if metrics.tracking else None
    sections += [scene_video(model, data, tracks), Gallery(_pictures(model, data))]
    if metrics.detection:
        sections += [detection_section(metrics.detection), distance_section(metrics.detection)]
    if metrics.map:
        sections.append(map_section(metrics.map))
    if metrics.occupancy:
        sections.append(occupancy_section(metrics.occupancy))
    if metrics.tracking:
        sections.append(tracking_section(metrics.tracking))
        sections.append(TrackGallery(_track_pictures(model, data, run_folder)))
    if devkit and metrics.detection:
        summary = devkit["mean_ap"], devkit["nd_score"], devkit["tp_errors"]
        sections.append(agreement_section(metrics.detection, *summary))
    robustness = stored_results(run_folder)
    if robustness is not None:
        sections += stored_sections(run_folder, robustness)
    losses = run_folder / "losses.csv"
    if losses.exists():
        sections.append(LossCurves(read_losses(losses)))
    sections += [Commands(commands), Configuration((run_folder / "config.yaml").read_text())]
    report = RunReport(
        title="Camera-LiDAR perception on one bird's-eye view",
        summary=f"Trained on {data.root} ({data.version}, split {data.train_split}) and measured "
        f"on {metrics.num_frames} frames of split {data.val_split}, which it has not seen.",
        facts=_facts(model, data, config),
        cards=_cards(metrics, robustness, seconds),
        sections=tuple(sections),
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    write_report(report, path)


def _cards(
    metrics: EvaluationMetrics, robustness: Results | None, seconds: Mapping[str, float]
) -> tuple[Card, ...]:
    cards = [Card.score(name, value) for name, value in metrics.headline().items()]
    for suite in robustness.suites if robustness else ():
        scores = robustness.scores(suite, robustness.metrics[0])  # type: ignore[union-attr]
        note = f"of {robustness.metrics[0]}, {suite}"  # type: ignore[union-attr]
        cards.append(Card.score("Resistance (mRA)", scores.mra, note))
    if "train" in seconds:
        cards.append(Card("Training", seconds["train"] / 60, "wall clock", unit="min", digits=1))
    return tuple(cards)


def _facts(model: Any, data: Any, config: Any) -> dict[str, str | int | float]:
    import torch

    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True,
        cwd=Path(__file__).parent,
    )  # fmt: skip
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else platform.machine()
    return {
        "Model": f"{sum(p.numel() for p in model.parameters()) / 1e6:.2f} M parameters",
        "Sensors": " + ".join(s for s in ("camera", "lidar") if getattr(model, s) is not None),
        "Training frames": len(data.reader(data.train_split)),
        "Seed": config.training.seed,
        "Machine": f"{device}, {torch.get_num_threads()} threads, torch {torch.__version__}",
        "Commit": commit.stdout.strip() or "not a git checkout",
        "Date": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
    }


def _pictures(model: Any, data: Any) -> tuple[FramePicture, ...]:
    """Frames spread over the split, the first of a scene each where there are enough scenes."""
    loader = data.val_dataloader()
    dataset = loader.dataset
    chosen = np.unique(np.linspace(0, len(dataset) - 1, NUM_PICTURES + 2).round().astype(int)[1:-1])
    return tuple(_picture(model, data, dataset, int(i)) for i in chosen)


def _track_pictures(model: Any, data: Any, run_folder: Path) -> tuple[FramePicture, ...]:
    """The last frames of the first scenes: their trails are the longest."""
    reader = data.reader(data.val_split)
    tracked = read_tracking_submission(run_folder / "evaluation" / TRACKS, reader.tokens)
    time = timeline(reader)
    last = {int(time.scene[i]): int(i) for i in time.order}  # of each scene, the latest stays
    pictures = []
    for sample in list(last.values())[:NUM_TRACK_PICTURES]:
        frame = reader[sample]
        ways = trails_at(tracked, time, sample, frame, min_score=0.25)
        found = detections_of(tracked.boxes, sample, frame)
        common = {"trails": ways, "min_score": 0.25}
        above = draw_bev(key_points(frame), found, None, grid=model.grid, title="tracks",
                         bev_from_ego=frame.bev_from_ego, **common)  # fmt: skip
        cameras = draw_cameras(frame, found, None, tile_width=480, **common)
        title, seconds = f"{frame.scene}, its last frame", "the ways of the last 4 seconds"
        pictures.append(
            FramePicture(title, cameras if frame.cameras else None, above, None, seconds)
        )
    return tuple(pictures)


def _picture(model: Any, data: Any, dataset: Any, index: int) -> FramePicture:
    import torch

    frame = data.reader(data.val_split)[index]
    batch = dataset[index]
    device = next(model.parameters()).device
    model.eval()
    with torch.inference_mode():
        decoded = model.decode(model(batch.to(device)))
    found = decoded["detection"][0] if "detection" in decoded else None
    probabilities = decoded["map"][0].float().cpu().numpy() if "map" in decoded else None
    masks = batch.map_masks[0].numpy() if batch.map_masks is not None else None
    map_grid = model.heads["map"].map_grid if "map" in model.heads else None
    truth, points = truth_of(frame), key_points(frame)
    drawn = {"grid": model.grid, "map_grid": map_grid, "bev_from_ego": frame.bev_from_ego}
    return FramePicture(
        title=f"{frame.scene}, frame {index}",
        cameras=draw_cameras(frame, found, truth, tile_width=480, min_score=0.25)
        if frame.cameras
        else None,
        prediction=draw_bev(points, found, truth, probabilities, min_score=0.25,
                            title="prediction", **drawn),
        truth=draw_bev(points, None, truth, masks, title="truth", **drawn),
        voxels=_voxels(decoded["occupancy"]) if "occupancy" in decoded else None,
        true_voxels=_true_voxels(batch, model.heads["occupancy"].occupancy_grid)
        if "occupancy" in decoded else None,
    )  # fmt: skip


def _voxels(volume: Any) -> NDArray[np.uint8]:
    voxels = Voxels(volume.semantics[0].cpu().numpy(), volume.grid)
    return draw_occupancy(voxels, "occupancy, predicted")


def _true_voxels(batch: Any, grid: Any) -> NDArray[np.uint8] | None:
    if batch.occupancy is None:
        return None
    voxels = Voxels(batch.occupancy.semantics[0].numpy(), grid)
    return draw_occupancy(voxels, "occupancy, truth")
