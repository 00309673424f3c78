"""Check every GPU kernel against float64, then time it beside what people use.

    python tools/gpu_check.py [--out docs/gpu/h200.json] [--data folder]

Needs torch, triton and numpy, a GPU, and this checkout; nothing has to be installed. Prints tables
in Markdown; ``--out`` writes the figures as JSON and the tables beside it as .md. Stops before any
timing where a check fails. Times are medians by CUDA events with cold caches; the host's time is
how long a call takes to return. The floor of pooling, forward and backward alike, is the bytes of
depth, features and map over the bandwidth of a copy in the same run.
"""

from __future__ import annotations

import argparse
import datetime
import json
import platform
import subprocess
import sys
import time
from dataclasses import asdict
from pathlib import Path

import torch
from gpu.checkout import ROOT, import_kernels


def environment() -> dict[str, str]:
    """What a figure depends on."""
    import numpy
    import triton

    git = ["git", "-C", ROOT, "describe", "--always", "--dirty"]
    try:
        commit = subprocess.run(git, capture_output=True, text=True).stdout.strip()
    except OSError:  # a machine without git
        commit = ""
    return {
        "gpu": torch.cuda.get_device_name(),
        "date": datetime.date.today().isoformat(),
        "commit": commit or "unknown",
        "command": " ".join(["python", *sys.argv]),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "triton": triton.__version__,
        "numpy": numpy.__version__,
    }


def run(data: Path) -> tuple[dict, str]:
    """All checks, and if they pass all timings: figures for JSON, and the tables."""
    import_kernels()
    from gpu import boxes, pooling, sparse, voxels
    from gpu.timing import Clock, table

    areas = pooling, voxels, sparse, boxes
    checks = []
    for area in areas:
        start = time.perf_counter()
        checks += area.checks("cuda", data)
        print(f"{area.__name__}: checked in {time.perf_counter() - start:.0f} s", flush=True)
    failed = [check for check in checks if not check.passed]
    figures = {"environment": environment(), "checks": [asdict(check) for check in checks]}
    for check in failed:
        print(f"WRONG: {check}")
    if failed:
        return figures, f"{len(failed)} of {len(checks)} checks failed; nothing was timed"
    clock = Clock()
    bandwidth = clock.copy_bandwidth()
    timings = [timing for area in areas for timing in area.timings(clock, bandwidth, data)]
    figures |= {"copy_bandwidth": bandwidth, "timings": [asdict(timing) for timing in timings]}
    about = "\n".join(f"- {key}: {value}" for key, value in figures["environment"].items())
    text = (
        f"{about}\n- copy bandwidth: {bandwidth / 1e12:.2f} TB/s\n- checks passed: {len(checks)}\n"
    )
    return figures, text + table(timings)


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    data = ROOT.parent / "shared" / "data"
    parser.add_argument("--data", type=Path, default=data, help="folder with the real key frame")
    parser.add_argument("--out", type=Path, help="write the figures here, and the tables beside")
    args = parser.parse_args()
    if not torch.cuda.is_available():
        print("This machine has no GPU that torch can use; nothing was checked.", file=sys.stderr)
        return 2
    figures, text = run(args.data)
    print(text)
    if args.out:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.write_text(json.dumps(figures, indent=2) + "\n")
        args.out.with_suffix(".md").write_text(text + "\n")
    return 0 if "timings" in figures else 1


if __name__ == "__main__":
    sys.exit(main())
