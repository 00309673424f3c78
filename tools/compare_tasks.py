"""Does one model for all tasks cost any of them? Train each task alone, and all together.

    python tools/compare_tasks.py --root runs/demo/world --steps 600

The world is that of `make demo`. Every training has the same samples, steps and sensors, and the
perspective supervision of the camera branch; the single-task models are fusion.yaml with one head.
Writes docs/results/tasks.json and tasks.md. Interrupted, it goes on with the training it was at;
remove runs/tasks to start anew.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from compare_sensors import train_and_evaluate
from provenance import provenance

ROOT = Path(__file__).resolve().parents[1]
OVERLAYS = {  # they are laid over the fusion config
    "all tasks": (),
    "detection alone": ("configs/tiny/detection.yaml",),
    "map alone": ("configs/tiny/map.yaml",),
    "occupancy alone": ("configs/tiny/occupancy.yaml",),
}
METRICS = {  # heading -> where it stands in metrics.json
    "mAP": ("detection", "mAP"),
    "NDS": ("detection", "NDS"),
    "map mIoU": ("map", "mIoU"),
    "occupancy mIoU": ("occupancy", "mIoU"),
    "occupancy RayIoU": ("occupancy", "RayIoU"),
}


def value(metrics: dict, heading: str) -> float | None:
    """A figure of a run, where it has that task."""
    task, name = METRICS[heading]
    return metrics.get(task, {}).get(name)


def table(results: dict[str, dict]) -> str:
    """A row per training, and how far the joint one is from each task's own."""
    lines = [f"| trained | {' | '.join(METRICS)} |", f"| --- |{' ---: |' * len(METRICS)}"]
    for name, metrics in results.items():
        cells = [value(metrics, heading) for heading in METRICS]
        lines.append(f"| {name} | {' | '.join('' if c is None else f'{c:.3f}' for c in cells)} |")
    if "all tasks" in results:
        cells = [difference(results, heading) for heading in METRICS]
        shown = " | ".join("" if c is None else f"{100 * c:+.1f}" for c in cells)
        lines.append(f"| all tasks, against its own (points) | {shown} |")
    return "\n".join(lines)


def difference(results: dict[str, dict], heading: str) -> float | None:
    """The joint model's figure less that of the task trained alone."""
    joint = value(results["all tasks"], heading)
    alone = [value(metrics, heading) for name, metrics in results.items() if name != "all tasks"]
    own = next((figure for figure in alone if figure is not None), None)
    return None if joint is None or own is None else joint - own


def main() -> None:
    parser = argparse.ArgumentParser(description="Does one model for all tasks cost any of them?")
    parser.add_argument("--root", default="runs/demo/world")
    parser.add_argument("--version", default="v1.0-trainval")
    parser.add_argument("--steps", type=int, default=600, help="optimizer steps of each training")
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "results")
    options = parser.parse_args()
    results = {
        name: train_and_evaluate(overlays, options, ROOT / "runs" / "tasks" / name.replace(" ", ""))
        for name, overlays in OVERLAYS.items()
    }
    origin = provenance(f"python tools/compare_tasks.py --steps {options.steps}")
    options.out.mkdir(parents=True, exist_ok=True)
    content = {**origin, "steps": options.steps, "results": results}
    (options.out / "tasks.json").write_text(json.dumps(content, indent=2) + "\n")
    note = (
        f"Same synthetic world, same {options.steps} steps of two samples each; scenes not trained "
        "on. Occupancy mIoU over the voxels seen by a camera, RayIoU over all rays. "
        f"Commit {origin['commit']}, {origin['date']}: `{origin['command']}`"
    )
    (options.out / "tasks.md").write_text(f"{table(results)}\n\n{note}\n")
    print(table(results))


if __name__ == "__main__":
    main()
