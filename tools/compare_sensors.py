"""Does fusion help? Train fusion, LiDAR-only and camera-only on the same samples and steps.

    python tools/compare_sensors.py --root runs/demo/world --steps 600

The world is that of `make demo`. Writes docs/results/sensors.json and sensors.md. Interrupted, it
goes on with the training it was at; remove runs/sensors to start anew.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from provenance import provenance

ROOT = Path(__file__).resolve().parents[1]
BASE = "configs/tiny/fusion.yaml"
OVERLAYS = {  # they are laid over the fusion config
    "camera + LiDAR": (),
    "LiDAR only": ("configs/tiny/lidar_only.yaml",),
    "camera only": ("configs/tiny/camera_only.yaml",),
}


def run(*arguments: object) -> None:
    """One `bevstack` command."""
    command = [str(Path(sys.executable).with_name("bevstack")), *map(str, arguments)]
    print("$", *command, flush=True)
    subprocess.run(command, cwd=ROOT, check=True)


def train_and_evaluate(
    overlays: Sequence[str], options: argparse.Namespace, folder: Path, *more: object
) -> dict:
    """Train and give the metrics; those of a finished training are kept.

    Args:
        overlays: configs laid over the fusion config.
        options: root, version and steps.
        folder: the run folder.
        more: further options of ``bevstack train``.
    """
    metrics = folder / "evaluation" / "metrics.json"
    if metrics.exists() and finished(folder, options.steps):
        print(f"{folder}: finished before, kept", flush=True)
        return json.loads(metrics.read_text())
    shutil.rmtree(folder, ignore_errors=True)
    configs = [part for path in (BASE, *overlays) for part in ("--config", path)]
    run("train", *configs, "--data.root", options.root, "--data.version", options.version,
        "--training.max_seconds", "null", "--training.max_steps", options.steps,
        "--run_folder", folder, *more)  # fmt: skip
    run("evaluate", folder)
    return json.loads(metrics.read_text())


def finished(folder: Path, steps: int) -> bool:
    """Was a training of so many steps run to its end there?"""
    return len((folder / "losses.csv").read_text().splitlines()) == 1 + steps


def table(results: dict[str, dict]) -> str:
    """The results as a Markdown table."""
    head = ("sensors", "mAP", "NDS", "map mIoU", "occupancy mIoU", "RayIoU")
    lines = [f"| {' | '.join(head)} |", "| --- " * len(head) + "|"]
    for name, metrics in results.items():
        detection, occupancy = metrics["detection"], metrics["occupancy"]
        figures = (
            *(detection["mAP"], detection["NDS"], metrics["map"]["mIoU"]),
            *(occupancy["mIoU"], occupancy["RayIoU"]),
        )
        lines.append(f"| {name} | {' | '.join(f'{figure:.3f}' for figure in figures)} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description="Does fusion help?")
    parser.add_argument("--root", default="runs/demo/world")
    parser.add_argument("--version", default="v1.0-trainval")
    parser.add_argument("--steps", type=int, default=600, help="optimizer steps of each training")
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "results")
    options = parser.parse_args()
    results = {
        name: train_and_evaluate(
            overlays, options, ROOT / "runs" / "sensors" / name.replace(" ", "")
        )
        for name, overlays in OVERLAYS.items()
    }
    origin = provenance(f"python tools/compare_sensors.py --steps {options.steps}")
    options.out.mkdir(parents=True, exist_ok=True)
    content = {**origin, "steps": options.steps, "results": results}
    (options.out / "sensors.json").write_text(json.dumps(content, indent=2) + "\n")
    note = (
        f"Same synthetic world, same {options.steps} steps of two samples each; scenes not "
        f"trained on; occupancy mIoU over voxels that a camera sees. "
        f"Commit {origin['commit']}, {origin['date']}: `{origin['command']}`"
    )
    (options.out / "sensors.md").write_text(f"{table(results)}\n\n{note}\n")
    print(table(results))


if __name__ == "__main__":
    main()
