"""Train an affinity head alone on a trained model's maps, and measure tracking with and without it.

    python tools/compare_affinity.py RUN --root WORLD

The model's maps and boxes are computed once and kept in memory (6 MB a frame on configs/tiny), so
that a step trains the head and nothing else. Printed and written: AMOTA and what belongs to it of
the greedy tracker, of the default one, and of the default one with the affinity in both of its
places, in the choice of pairs alone and in scores alone.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bevstack.datasets.batch import Batch, collate
from bevstack.datasets.boxes import Detections
from bevstack.datasets.dataset import FrameDataset
from bevstack.datasets.seeding import generator
from bevstack.perception.commands.train import load_run
from bevstack.perception.evaluation.affinities import Linker
from bevstack.perception.evaluation.boxes import GlobalBoxes
from bevstack.perception.evaluation.ground_truth import tracking_truth
from bevstack.perception.evaluation.tracking import evaluate_tracks
from bevstack.perception.heads import AffinityHead
from bevstack.perception.heads.affinity import AffinityOutput
from bevstack.perception.tracking import Affinities, GreedyTracker, KalmanTracker
from bevstack.perception.tracking.scenes import timeline, track_scenes
from bevstack.perception.training.validation import predicted_boxes


@dataclass(frozen=True)
class Seen:
    """One frame as the trained model sees it."""

    map: Tensor  # (1, C, X, Y) half precision: what heads are given
    found: Detections
    batch: Batch  # without sensor data


@torch.inference_mode()
def frames_of(model: Any, data: Any, reader: Any, count: int | None, name: str) -> list[Seen]:
    """The first frames of a split, as evaluation sees them, one by one."""
    model.eval()
    dataset = FrameDataset(reader, data.encoder, data.val_steps, data.seed, "raise")
    seen, maps, start = [], [], time.monotonic()

    def split(bev: Tensor) -> dict[str, Tensor]:
        maps.append(bev.half())
        return dict.fromkeys(model.heads, bev)

    total = min(count or len(reader), len(reader))
    for i in range(total):
        batch = dataset[0, i]
        assert isinstance(batch, Batch)
        found = model.heads["detection"].decode(model(batch, split=split)["detection"])[0]
        seen.append(Seen(maps.pop(), found, without_sensors(batch)))
        if i % 20 == 19:
            print(f"{name}: {i + 1}/{total} frames, {time.monotonic() - start:.0f} s", flush=True)
    return seen


def without_sensors(batch: Batch) -> Batch:
    """What targets and poses need, and no more."""
    return replace(
        batch,
        images=batch.images[:0],
        image_sample=batch.image_sample[:0],
        bev_from_image=batch.bev_from_image[:0],
        points=batch.points[:0],
        point_sample=batch.point_sample[:0],
        map_masks=None,
        map_valid=torch.zeros_like(batch.map_valid),
        occupancy=None,
    )


def train(
    head: AffinityHead, seen: Sequence[Seen], steps: int, clips: int, lr: float, seed: int
) -> list[float]:
    """Losses of all steps; each takes some pairs of frames that follow each other."""
    numbers = [int(s.batch.scene[0]) for s in seen if s.batch.scene is not None]
    second = [k for k in range(1, len(seen)) if numbers[k] == numbers[k - 1]]
    optimizer = torch.optim.AdamW(head.parameters(), lr=lr, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, lr, steps, pct_start=0.2)
    random, losses = generator(seed, "pairs", "compare_affinity"), []
    head.train()
    for step in range(steps):
        chosen = [seen[k - back] for k in random.choice(second, clips) for back in (1, 0)]
        output = head(torch.cat([s.map for s in chosen]).float())
        terms = head.loss(output, collate([s.batch for s in chosen]), [s.found for s in chosen])
        loss = terms["forward"] + terms["backward"]
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(head.parameters(), 10.0)
        optimizer.step()
        schedule.step()
        losses.append(float(loss.detach()))
        if step % 50 == 49:
            print(f"step {step + 1}/{steps}: loss {np.mean(losses[-50:]):.3f}", flush=True)
    return losses


@torch.inference_mode()
def linked(head: AffinityHead, seen: Sequence[Seen]) -> Affinities:
    """What the head says of the frames."""
    head.eval()
    linker = Linker()
    for s in seen:
        output: AffinityOutput = head(s.map.float())
        (frame,) = head.decode(output, s.batch, [s.found])
        linker.add(head, s.batch.tokens[0], frame)
    return linker.affinities([s.batch.tokens[0] for s in seen])


def measure(
    reader: Any, seen: Sequence[Seen], said: Affinities
) -> dict[str, dict[str, float | None]]:
    """The main figures of every tracker."""
    poses = [s.batch.global_from_bev[0].numpy() for s in seen]
    boxes = [predicted_boxes(s.found, pose, i) for i, (s, pose) in enumerate(zip(seen, poses))]
    found, truth, moments = GlobalBoxes.concatenate(boxes), tracking_truth(reader), timeline(reader)
    rows: dict[str, tuple[Any, Affinities | None]] = {
        "greedy": (GreedyTracker(), None),
        "Kalman": (KalmanTracker(), None),
        "Kalman, affinity in pairs": (KalmanTracker(refinement=0.0, affinity_weight=0.5), said),
        "Kalman, affinity in scores": (KalmanTracker(refinement=0.5, affinity_weight=0.0), said),
        "Kalman, affinity in both": (KalmanTracker(refinement=0.5, affinity_weight=0.5), said),
    }
    return {
        name: evaluate_tracks(track_scenes(tracker, found, moments, given), truth).headline()
        for name, (tracker, given) in rows.items()
    }


def main() -> None:
    """Train, measure, print, and write if asked to."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("run", type=Path, help="run folder of a trained model")
    parser.add_argument("--root", required=True, help="its nuScenes folder")
    parser.add_argument("--train-frames", type=int, help="of the training split; default: all")
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--clips", type=int, default=2, help="pairs of frames in a step")
    parser.add_argument("--lr", type=float, default=2e-3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, help="JSON file for the result")
    options = parser.parse_args()
    model, data, _ = load_run(options.run, root=options.root)
    for task in set(model.heads) - {"detection"}:
        model.heads.pop(task)
    data.prepare_data()
    train_reader, reader = data.reader(data.train_split), data.reader(data.val_split)
    seen = frames_of(model, data, train_reader, options.train_frames, data.train_split)
    torch.manual_seed(options.seed)
    head = AffinityHead(model.backbone.out_channels, model.grid)
    losses = train(head, seen, options.steps, options.clips, options.lr, options.seed)
    frames = len(seen)
    seen = frames_of(model, data, reader, None, data.val_split)
    rows = measure(reader, seen, linked(head, seen))
    for name, row in rows.items():
        print(f"{name:28}", " ".join(f"{key} {value or 0:.3f}" for key, value in row.items()))
    content = {
        "train_frames": frames,
        "steps": options.steps,
        "clips": options.clips,
        "seed": options.seed,
        "loss": {"first": losses[0], "last 50": float(np.mean(losses[-50:]))},
        "trackers": rows,
    }
    if options.out:
        options.out.write_text(json.dumps(content, indent=2) + "\n")


if __name__ == "__main__":
    main()
