"""Does memory help? Train the same model with and without it, on the same clips and steps.

    python tools/compare_memory.py --root runs/demo/world --start_from runs/demo --steps 150

Both begin with the weights of a trained model without memory and keep its camera and LiDAR
branches as they are; fuser, backbone and detection head, and the memory, are trained further.
Measured as a stream over the validation split. Writes docs/results/memory.json and memory.md after
every seed. Interrupted, it goes on with the training it was at; remove runs/memory to start anew.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
from compare_sensors import train_and_evaluate
from numpy.typing import NDArray
from provenance import provenance

from bevstack.datasets.nuscenes.reader import NuScenesReader
from bevstack.perception.evaluation.detection import ERROR_THRESHOLD, MOVING, THRESHOLDS
from bevstack.perception.evaluation.detection_curves import average_precision
from bevstack.perception.evaluation.filters import counts, evaluated
from bevstack.perception.evaluation.ground_truth import GroundTruth, ground_truth
from bevstack.perception.evaluation.matching import match, score_order
from bevstack.perception.evaluation.submission import read_submission

ROOT = Path(__file__).resolve().parents[1]
DETECTION = "configs/tiny/detection.yaml"
ARMS = {  # overlays of the fusion config
    "without memory": (DETECTION,),
    "with memory": (DETECTION, "configs/tiny/memory.yaml"),
}
OCCLUDED = 1  # nuScenes' visibility: up to 40 % of the object is seen
HEADINGS = {
    "mAP": "mAP",
    "NDS": "NDS",
    "mAVE": "mAVE m/s",
    "mAVE_moving": "mAVE moving m/s",
    "AMOTA": "AMOTA",
    "occluded_AP": "AP occluded",
    "occluded_recall": "recall occluded",
}
Figures = dict[str, float]


class Truth:
    """The validation split's annotations and how much of each object is seen."""

    def __init__(self, root: str, version: str) -> None:
        reader = NuScenesReader(root, version, "val", 0, "ego")
        annotations = [reader.global_annotations(i) for i in range(len(reader))]
        self.boxes: GroundTruth = ground_truth(reader)
        self.visibility: NDArray[np.int64] = np.concatenate(
            [a.visibility[a.boxes.label >= 0] for a in annotations if a is not None]
        )


def run_arm(name: str, seed: int, options: argparse.Namespace, truth: Truth) -> Figures:
    """Train and measure one model."""
    folder = ROOT / "runs" / "memory" / f"{name.replace(' ', '_')}-{seed}"
    measured = train_and_evaluate(
        ARMS[name], options, folder,
        "--training.start_from", Path(options.start_from).absolute(),
        "--training.frozen", "[camera,lidar]", "--training.lr", options.lr,
        "--training.seed", seed, "--data.seed", seed, "--data.clip_length", 2,
    )  # fmt: skip
    metrics = measured["detection"]
    found = {"mAP": metrics["mAP"], "NDS": metrics["NDS"], "mAVE": metrics["tp_errors"]["vel_err"]}
    found |= {
        "mAVE_moving": metrics["moving_vel_err"],
        "AMOTA": measured["tracking"]["AMOTA"],
    }
    return found | occluded_figures(folder / "evaluation" / "submission.json", truth)


def occluded_figures(submission: Path, truth: Truth) -> Figures:
    """AP (mean over thresholds and classes) and recall at 2 m of the objects that are occluded.

    Boxes that find another object count neither for nor against.
    """
    boxes = truth.boxes
    found = evaluated(read_submission(submission, boxes.tokens), boxes)
    found = found[score_order(found.score)]
    kept = counts(boxes.boxes, boxes)
    wanted, hidden = boxes.boxes[kept], truth.visibility[kept] == OCCLUDED
    matched = match(found, wanted, THRESHOLDS)
    precisions, recalls = [], []
    for k in np.unique(wanted.label[hidden]):
        count = int((hidden & (wanted.label == k)).sum())
        rows = matched[:, found.label == k]
        precisions += [average_precision(row[(row < 0) | hidden[row]] >= 0, count) for row in rows]
        hit = rows[THRESHOLDS.index(ERROR_THRESHOLD)]
        recalls.append(hidden[hit[hit >= 0]].sum() / count)
    return {"occluded_AP": float(np.mean(precisions)), "occluded_recall": float(np.mean(recalls))}


def mean(results: dict[str, Figures]) -> Figures:
    """Of each figure, over seeds."""
    return {name: float(np.mean([r[name] for r in results.values()])) for name in HEADINGS}


def table(results: dict[str, dict[str, Figures]]) -> str:
    """A row per training, the means, and what memory changes."""
    lines = [f"| model | seed | {' | '.join(HEADINGS.values())} |"]
    lines.append(f"| --- | --- |{' ---: |' * len(HEADINGS)}")
    means = {name: mean(by_seed) for name, by_seed in results.items()}
    for name, by_seed in results.items():
        for seed, figures in {**by_seed, "mean": means[name]}.items():
            cells = " | ".join(f"{figures[h]:.3f}" for h in HEADINGS)
            lines.append(f"| {name} | {seed} | {cells} |")
    before, after = (means[name] for name in ARMS)
    change = " | ".join(f"{100 * (after[h] / before[h] - 1):+.0f} %" for h in HEADINGS)
    return "\n".join([*lines, f"| memory changes the mean by | | {change} |"])


def write(results: dict[str, dict[str, Figures]], options: argparse.Namespace) -> None:
    """Both files, of the seeds that are done."""
    origin = provenance(
        f"python tools/compare_memory.py --start_from {options.start_from} --steps {options.steps}"
    )
    options.out.mkdir(parents=True, exist_ok=True)
    content = {**origin, "steps": options.steps, "lr": options.lr, "results": results}
    (options.out / "memory.json").write_text(json.dumps(content, indent=2) + "\n")
    note = (
        "Both begin with the weights of one model trained without memory, whose camera and LiDAR "
        f"branches stay as they are, and are trained {options.steps} steps further, detection "
        "alone, each step on one clip of two frames; the same synthetic world, clips and seeds; "
        "scenes not trained on, frame after frame. "
        f"Moving: faster than {MOVING:g} m/s. Occluded: up to 40 % seen (nuScenes' visibility 1). "
        f"Commit {origin['commit']}, {origin['date']}: `{origin['command']}`"
    )
    (options.out / "memory.md").write_text(f"{table(results)}\n\n{note}\n")


def main() -> None:
    parser = argparse.ArgumentParser(description="Does memory help?")
    parser.add_argument("--root", default="runs/demo/world")
    parser.add_argument("--version", default="v1.0-trainval")
    parser.add_argument("--start_from", default="runs/demo", help="run folder without memory")
    parser.add_argument("--steps", type=int, default=150, help="optimizer steps of each training")
    parser.add_argument("--lr", type=float, default=2e-3)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "results")
    options = parser.parse_args()
    truth = Truth(options.root, options.version)
    results: dict[str, dict[str, Figures]] = {name: {} for name in ARMS}
    for seed in options.seeds:
        for name in ARMS:
            results[name][str(seed)] = run_arm(name, seed, options, truth)
        write(results, options)
        print(table(results), flush=True)


if __name__ == "__main__":
    main()
