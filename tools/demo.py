"""The whole path at once: synthesize, index, train, corrupt, export, infer, evaluate, report.

    python tools/demo.py --size full|smoke [--out runs/demo]

Each stage is the `bevstack` command that a user would type; it is printed before it runs. Ends
with OUT/report.html and OUT/metrics.json.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
CONFIG = ROOT / "configs" / "tiny" / "fusion.yaml"


@dataclass(frozen=True)
class Size:
    """How much of everything."""

    scenes: int
    frames: int  # key frames per scene
    image_size: str  # width,height
    train_seconds: int
    version: str
    robustness: tuple[str, ...]  # options of the corruption suite


SIZES = {
    "full": Size(50, 8, "400,225", 460, "v1.0-trainval",
                 ("--frames", "8", "--severities", "[3]", "--attack", "true",
                  "--attack_steps", "3")),
    "smoke": Size(4, 3, "400,225", 30, "v1.0-mini",
                  ("--frames", "2", "--severities", "[3]", "--corruptions",
                   "[beamsreducing,pointsreducing]")),
}  # fmt: skip


class Stages:
    """Runs commands one after another and keeps their times."""

    def __init__(self, count: int) -> None:
        self.count = count
        self.seconds: dict[str, float] = {}
        self.commands: list[str] = []

    def run(self, name: str, *arguments: object) -> None:
        """Run one `bevstack` command; stop the demo if it fails."""
        command = ["bevstack", *map(str, arguments)]
        self.commands.append(" ".join(command))
        print(f"\n[{len(self.seconds) + 1}/{self.count}] {' '.join(command)}", flush=True)
        start = time.monotonic()
        executable = Path(sys.executable).with_name("bevstack")
        code = subprocess.run([str(executable), *command[1:]], cwd=ROOT).returncode
        self.seconds[name] = round(time.monotonic() - start, 1)
        if code:
            raise SystemExit(f"demo: `{' '.join(command)}` ended with exit status {code}")
        print(f"[{len(self.seconds)}/{self.count}] {name}: {self.seconds[name]:.0f} s", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description="Synthesize, train, evaluate, report.")
    parser.add_argument("--size", choices=SIZES, default="full")
    parser.add_argument("--out", type=Path, default=Path("runs/demo"))
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    size, out = SIZES[options.size], options.out
    world, run = out / "world", out / "train"
    for old in (world, run):  # a demo of another size may lie there
        shutil.rmtree(old, ignore_errors=True)
    out.mkdir(parents=True, exist_ok=True)

    stages = Stages(count=7)
    start = time.monotonic()
    stages.run("synthesize", "synthesize", world, "--scenes", size.scenes, "--frames", size.frames,
               "--seed", options.seed, "--image_size", f"[{size.image_size}]",
               "--camera_sweeps", "false")  # fmt: skip
    stages.run("index", "index", world, "--version", size.version)
    mini_world = size.version == "v1.0-mini"
    mini = ["--data.train_split", "mini_train", "--data.val_split", "mini_val"]
    stages.run("train", "train", "--config", CONFIG.relative_to(ROOT), "--data.root", world,
               "--data.version", size.version, *(mini if mini_world else []),
               "--training.max_seconds", size.train_seconds, "--run_folder", run)  # fmt: skip
    stages.run("robustness", "robustness", run, "--suites", "[multicorrupt]", *size.robustness)
    stages.run("export", "export", run, out / "onnx")  # compared to the trained model at its end
    stages.run("infer", "infer", world, "--runtime", out / "onnx", "--version", size.version,
               "--split", "mini_val" if mini_world else "val", "--out", out / "infer",
               "--num_frames", 20)  # fmt: skip
    earlier = out / "stages.json"  # for the report
    done = {"seconds": stages.seconds, "commands": ["make demo", *stages.commands]}
    earlier.write_text(json.dumps(done))
    stages.run("evaluate", "evaluate", run, "--official", "true", "--ablation", "true",
               "--report", out / "report.html", "--stages", earlier)  # fmt: skip

    stages.seconds["total"] = round(time.monotonic() - start, 1)
    metrics = json.loads((run / "evaluation" / "metrics.json").read_text())
    faults = json.loads((run / "robustness" / "results.json").read_text())
    metrics["robustness"] = faults["summary"]["multicorrupt"]
    metrics["runtime"] = json.loads((out / "infer" / "latency.json").read_text())
    metrics["seconds"] = stages.seconds
    (out / "metrics.json").write_text(json.dumps(metrics, indent=2) + "\n")
    print(f"\nmAP {metrics['detection']['mAP']:.3f}   NDS {metrics['detection']['NDS']:.3f}   "
          f"map mIoU {metrics['map']['mIoU']:.3f}   "
          f"occupancy mIoU {metrics['occupancy']['mIoU']:.3f}   "
          f"RayIoU {metrics['occupancy']['RayIoU']:.3f}   "
          f"mRA {metrics['robustness']['NDS']['mRA'] or 0:.3f}   "
          f"{stages.seconds['total']:.0f} s")  # fmt: skip
    print(f"report:  {(out / 'report.html').resolve()}")
    print(f"metrics: {(out / 'metrics.json').resolve()}")


if __name__ == "__main__":
    main()
