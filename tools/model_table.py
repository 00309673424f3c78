"""Write configs/README.md: what every shipped model is, and what it costs.

    python tools/model_table.py [--threads 2] [--repeat 3]

Parameters and multiply-adds are counted on the model that the config builds, fed with one sample:
the calibration and the ten sweeps of the real key frame where --data has them. Latency is the
median forward pass, float32, batch 1, on the machine that is named.
"""

from __future__ import annotations

import argparse
import json
import os
from dataclasses import dataclass
from pathlib import Path

import torch
from bench_model import Stopwatch, count_flops, has_real_rig, make_batch, median_ms, size_of
from provenance import provenance

from bevstack.perception.commands.train import run_parser

ROOT = Path(__file__).resolve().parents[1]
NOT_YET = "not yet run: needs nuScenes"


@dataclass(frozen=True)
class Entry:
    """One line of the table."""

    configs: tuple[str, ...]  # later ones laid over
    task: str
    sensors: str
    published: str = ""  # by the README of mit-han-lab/bevfusion, on nuScenes val
    results: tuple[str, ...] = ()  # file in docs/results, and the keys down to a metrics.json

    def ours(self) -> str:
        """Our metric, from a stored result."""
        path = ROOT / "docs" / "results" / (self.results[0] if self.results else "")
        if not self.results or not path.is_file():
            return NOT_YET if self.configs[0].startswith(("bev", "multi", "nus")) else "not yet run"
        found = json.loads(path.read_text())
        for key in self.results[1:]:
            found = found[key]
        detection, mean_iou = found["detection"], found["map"]["mIoU"]
        text = f"{detection['mAP']:.3f} mAP, {detection['NDS']:.3f} NDS"
        return f"{text}, {mean_iou:.3f} mIoU (synthetic)"


ENTRIES = (
    Entry(("bevstack/base",), "detection, map", "camera, LiDAR"),
    Entry(("bevfusion/det",), "detection", "camera, LiDAR", "68.52 mAP, 71.38 NDS"),
    Entry(("bevfusion/lidar_det",), "detection", "LiDAR", "64.68 mAP, 69.28 NDS"),
    Entry(("bevfusion/camera_det",), "detection", "camera", "35.56 mAP, 41.21 NDS"),
    Entry(("bevfusion/seg",), "map", "camera, LiDAR", "62.95 mIoU"),
    Entry(("multitask/det_map",), "detection, map", "camera, LiDAR"),
    Entry(("nuscenes/fusion",), "detection, map", "camera, LiDAR"),
    Entry(
        *(("tiny/fusion",), "detection, map, occupancy", "camera, LiDAR", ""),
        ("sensors.json", "results", "camera + LiDAR"),
    ),
    Entry(
        *(("tiny/fusion", "tiny/lidar_only"), "detection, map, occupancy", "LiDAR", ""),
        ("sensors.json", "results", "LiDAR only"),
    ),
    Entry(
        *(("tiny/fusion", "tiny/camera_only"), "detection, map, occupancy", "camera", ""),
        ("sensors.json", "results", "camera only"),
    ),
    Entry(
        *(("tiny/fusion", "tiny/transfusion"), "detection, map", "camera, LiDAR", ""),
        ("transfusion.json",),
    ),
    Entry(("tiny/fusion", "tiny/voxels"), "detection, map, occupancy", "camera, LiDAR"),
)


def measured(entry: Entry, options: argparse.Namespace) -> tuple[int, float, float | None]:
    """Parameters, GMAC and milliseconds of a forward pass, None without repeats."""
    paths = [str(ROOT / "configs" / f"{name}.yaml") for name in entry.configs]
    config = run_parser().parse_args([text for path in paths for text in ("--config", path)])
    parts = run_parser().instantiate(config)
    model = parts.model.eval()
    batch = make_batch(parts.data.encoder, options.data, 1)

    def forward() -> object:
        with torch.inference_mode():
            return model(batch)

    milliseconds = None
    if options.repeat:
        milliseconds = median_ms(forward, Stopwatch(torch.device("cpu")), options.repeat)
    return size_of(model), count_flops(model, forward)["all"] / 2, milliseconds


def main() -> None:
    parser = argparse.ArgumentParser(description="Write configs/README.md.")
    parser.add_argument("--data", type=Path, default=ROOT.parent / "shared" / "data")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeat", type=int, default=3, help="0 counts and does not time")
    parser.add_argument("--out", type=Path, default=ROOT / "configs" / "README.md")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    rows, load = [], os.getloadavg()[0]
    for entry in ENTRIES:
        parameters, gmac, milliseconds = measured(entry, options)
        names = " + ".join(f"`{name}.yaml`" for name in entry.configs)
        cells = (
            *(names, entry.task, entry.sensors, entry.published, entry.ours()),
            *(f"{parameters / 1e6:.1f} M", f"{gmac:.1f}"),
            "not timed" if milliseconds is None else f"{milliseconds / 1e3:.2f} s",
        )
        rows.append("| " + " | ".join(cells) + " |")
        print(rows[-1], flush=True)
    options.out.write_text(page(rows, options, max(load, os.getloadavg()[0])))


def page(rows: list[str], options: argparse.Namespace, load: float) -> str:
    """The whole file."""
    options_given = f"--threads {options.threads} --repeat {options.repeat}"
    origin = provenance(f"python tools/model_table.py {options_given}")
    head = ["config", "task", "sensors", "published", "ours", "parameters", "GMAC", "CPU"]
    sample = "real key frame, ten sweeps" if has_real_rig(options.data) else "made-up sensors"
    timing = "CPU: to be timed by the same tool on a quiet machine."
    if options.repeat:
        timing = (
            f"CPU: median of {options.repeat} forward passes, float32, batch 1, "
            f"{origin['machine']}; load of the machine {load:.1f}, the tool's own included."
        )
        if load > 2 * options.threads:
            timing += " Other programs ran beside it: upper bounds, whose rows compare roughly."
    lines = [
        "# Models",
        "",
        "| " + " | ".join(head) + " |",
        "| --- | --- | --- | --- | --- | ---: | ---: | ---: |",
        *rows,
        "",
        "Configs joined by + are laid one over the other: `--config A --config B`. Published: on "
        "nuScenes val, by the README of mit-han-lab/bevfusion. GMAC: multiply-adds of one forward "
        "pass in products of matrices, attention and convolutions, sparse ones by the pairs of "
        f"voxels that meet; sample: {sample}. {timing} GPU: not measured yet.",
        "",
        f"Written by `{origin['command']}`, commit {origin['commit']}, {origin['date']}.",
        "",
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    main()
