"""Time the CPU kernels beside what people use, in the same run.

    python tools/bench_kernels.py [--threads 2] [--data folder] [--out docs/results/kernels.json]

BEV pooling at BEVFusion's geometry and at a large one; voxelization of a cloud of ten sweeps. Every
result is checked against the baseline before it is timed. A figure is the median of --repeat runs
(ten times as many of voxelization) in milliseconds; the methods of a task take turns, each with a
warm-up, so that what the machine does meanwhile meets all of them. Memory is the growth of the
process's peak resident size.
"""

from __future__ import annotations

import argparse
import ctypes
import datetime
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path

import numba
import numpy as np
import torch
from bench_geometry import (
    BEVFUSION,
    LARGE,
    Geometry,
    frustum_cells,
    has_real_rig,
    rig_of,
    ten_sweeps,
)
from torch import Tensor

from bevstack.kernels import bev_pool, plan_bev_pool, voxelize
from bevstack.kernels.bev_pool import bev_pool_reference

CHANNELS = 80
POINT_RANGE, VOXEL_SIZE = (-54.0, -54.0, -5.0, 54.0, 54.0, 3.0), (0.075, 0.075, 0.2)
MAX_POINTS, MAX_VOXELS = 10, 300_000
TURNS = 3
WARM_UP = 0.3  # seconds


@dataclass(frozen=True)
class Timing:
    """One method on one task."""

    task: str
    method: str
    median_ms: float
    fastest_ms: float
    peak_mb: float | None  # None where /proc does not tell
    ratio: float | None = None  # baseline's median / this median


def measure(task: str, methods: dict[str, Callable[[], object]], repeat: int) -> list[Timing]:
    """Time single calls of all methods in turns; memory in a call of its own."""
    peaks, times = {}, {}
    for method, call in methods.items():
        call()
        peaks[method], times[method] = peak_growth_mb(call), []
    for _ in range(TURNS):
        for method, call in methods.items():
            # OpenMP's threads of the method before spin on for a while, on a core needed now.
            time.sleep(0.5)
            warm = time.perf_counter() + WARM_UP
            while time.perf_counter() < warm:
                call()
            for _ in range(-(-repeat // TURNS)):
                start = time.perf_counter()
                call()
                times[method].append(1e3 * (time.perf_counter() - start))
    return [Timing(task, m, statistics.median(ms), min(ms), peaks[m]) for m, ms in times.items()]


def peak_growth_mb(call: Callable[[], object]) -> float | None:
    """How far ``call`` raises the peak resident size above the resident size before it."""
    try:
        # Give back what earlier calls freed, or it would be used again uncounted.
        ctypes.CDLL("libc.so.6").malloc_trim(0)
        Path("/proc/self/clear_refs").write_text("5")  # forget the peak so far
    except OSError:
        return None
    before = resident_kb("VmRSS")
    call()
    return (resident_kb("VmHWM") - before) / 1024


def resident_kb(field: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(field))


def compare(timings: list[Timing]) -> list[Timing]:
    """Fill in the ratios: the first timing of each task is its baseline."""
    base: dict[str, float] = {}
    for timing in timings:
        base.setdefault(timing.task, timing.median_ms)
    return [replace(timing, ratio=base[timing.task] / timing.median_ms) for timing in timings]


# --- BEV pooling ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class SortedPoints:
    """What an interval sum needs beforehand: the points inside, in order of their cell."""

    order: Tensor
    counts: Tensor  # (G,)


def sort_points(cell: Tensor, num_cells: int) -> SortedPoints:
    flat = cell.flatten()
    inside = (flat >= 0).nonzero().squeeze(1)
    sorted_cells, order = flat[inside].sort(stable=True)
    return SortedPoints(inside[order], sorted_cells.bincount(minlength=num_cells))


def interval_sum(depth: Tensor, features: Tensor, points: SortedPoints) -> Tensor:
    """As in MIT BEVFusion: frustum features written out, sorted by cell, then summed."""
    lifted = depth.unsqueeze(-1) * features.unsqueeze(1)
    lifted = lifted.flatten(0, 3)[points.order]
    return torch.segment_reduce(lifted, "sum", lengths=points.counts, initial=0.0)


def bench_pool(geometry: Geometry, rig, dtype: torch.dtype, repeat: int) -> list[Timing]:
    """Forward, forward and backward, and plan at one geometry."""
    cell = torch.from_numpy(frustum_cells(geometry, *rig))
    num_cells, (N, D, H, W) = geometry.grid.num_cells, cell.shape
    torch.manual_seed(0)
    depth = torch.randn(N, D, H, W).softmax(1).to(dtype)
    features = torch.randn(N, H, W, CHANNELS, dtype=dtype)
    grad = torch.randn(num_cells, CHANNELS, dtype=dtype)
    plan, points = plan_bev_pool(cell, num_cells), sort_points(cell, num_cells)
    name = f"{geometry.name} {str(dtype).removeprefix('torch.')}"
    touched = int((plan.cell_first.diff() > 0).sum())
    print(
        f"{name}: {cell.numel():,} points, {len(points.order):,} inside, "
        f"{int(plan.column_first[-1]):,} runs, {touched:,} of {num_cells:,} cells touched"
    )
    methods = {
        "materialise + index_add": lambda d, f: bev_pool_reference(d, f, cell, num_cells),
        "ours, plan made before": lambda d, f: bev_pool(d, f, cell, num_cells, plan),
        "ours, plan included": lambda d, f: bev_pool(d, f, cell, num_cells),
    }
    if dtype == torch.float32:  # its CPU kernel has no half precision worth comparing with
        methods["interval sum (segment_reduce)"] = lambda d, f: interval_sum(d, f, points)
    check_pool(methods, depth, features)
    timings = []
    forward = {method: partial(pool, depth, features) for method, pool in methods.items()}
    timings += measure(f"pool forward, {name}", forward, repeat)
    inputs = depth.requires_grad_(), features.requires_grad_()

    def both(pool: Callable) -> object:
        return torch.autograd.grad(pool(*inputs), inputs, grad)

    with_backward = {method: partial(both, pool) for method, pool in methods.items()}
    timings += measure(f"pool forward + backward, {name}", with_backward, repeat)
    plans = {"sort points": sort_points, "ours": plan_bev_pool}
    make = {method: partial(plan, cell, num_cells) for method, plan in plans.items()}
    return timings + measure(f"pool plan, {name}", make, repeat)


def check_pool(methods: dict[str, Callable], depth: Tensor, features: Tensor) -> None:
    """All methods against the first, on some channels, in float32."""
    inputs = depth.float(), features[..., :4].float()
    expected = next(iter(methods.values()))(*inputs)
    for method in methods.values():
        torch.testing.assert_close(method(*inputs), expected, rtol=1e-4, atol=1e-4)


# --- Voxelization ---------------------------------------------------------------------------------


def bench_voxelize(points: Tensor, repeat: int) -> list[Timing]:
    """Means of voxels: spconv's CPU voxelization where it is installed, and ours."""
    batch = torch.zeros(len(points), dtype=torch.int64)
    args = points, batch, 1, POINT_RANGE, VOXEL_SIZE
    methods = {
        "ours, nothing dropped": lambda: voxelize(*args),
        "ours, caps as spconv": lambda: voxelize(*args, MAX_POINTS, MAX_VOXELS),
    }
    ours = voxelize(*args, MAX_POINTS, MAX_VOXELS)
    print(f"voxelize: {len(points):,} points, {len(ours.coordinates):,} voxels")
    try:
        from spconv.pytorch.utils import PointToVoxel
    except ImportError:
        print("spconv is not installed: no baseline for voxelization")
    else:
        group = PointToVoxel(list(VOXEL_SIZE), list(POINT_RANGE), 5, MAX_VOXELS, MAX_POINTS)

        def with_mean():
            values, _, counts = group(points)
            return values.sum(1) / counts.unsqueeze(1)

        _, zyx, counts = group(points)
        # Theirs come by first point, ours by cell.
        order = torch.from_numpy(np.lexsort(zyx.T.numpy()))
        assert torch.equal(ours.coordinates[:, [3, 2, 1]].int(), zyx[order].int())
        assert torch.equal(ours.num_points.int(), counts[order].int())
        torch.testing.assert_close(ours.features, with_mean()[order], rtol=1e-5, atol=1e-5)
        baselines = {"spconv PointToVoxel": lambda: group(points), "the same + mean": with_mean}
        methods = {**baselines, **methods}
    return measure("voxelize", methods, 10 * repeat)


# --- Report ---------------------------------------------------------------------------------------


def environment(threads: int, rig: str) -> dict[str, str | int]:
    """What a figure depends on."""
    cpu = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        names = [line for line in info.read_text().splitlines() if line.startswith("model name")]
        cpu = names[0].partition(": ")[2] if names else cpu
    git = ["git", "-C", Path(__file__).parent, "describe", "--always", "--dirty"]
    commit = subprocess.run(git, capture_output=True, text=True).stdout.strip()
    return {
        "command": " ".join(["python", *sys.argv]),
        "date": datetime.date.today().isoformat(),
        "commit": commit,
        "cpu": cpu,
        "threads": threads,
        "calibration": rig,
        "torch": torch.__version__,
        "numba": numba.__version__,
        "numpy": np.__version__,
    }


def table(timings: list[Timing]) -> str:
    """One block per task in Markdown, with the ratio to its first line."""
    lines, task = [], ""
    for timing in timings:
        if timing.task != task:
            task = timing.task
            lines += [
                f"\n**{task}**\n",
                "| method | median ms | fastest ms | peak MB | times faster |",
                "|---|---:|---:|---:|---:|",
            ]
        peak = "" if timing.peak_mb is None else f"{timing.peak_mb:.0f}"
        lines.append(
            f"| {timing.method} | {timing.median_ms:.2f} | {timing.fastest_ms:.2f} "
            f"| {peak} | {timing.ratio:.1f} |"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    data = Path(__file__).resolve().parents[2] / "shared" / "data"
    parser.add_argument("--data", type=Path, default=data, help="folder with the real key frame")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--repeat", type=int, default=9)
    parser.add_argument("--out", type=Path, help="write the figures here, and the tables beside")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)

    rig = rig_of(args.data)
    calibration = "real key frame" if has_real_rig(args.data) else "made up, like nuScenes"
    about = environment(args.threads, calibration)
    load = f"{os.getloadavg()[0]:.1f}"
    timings = bench_pool(BEVFUSION, rig, torch.float32, args.repeat)
    timings += bench_pool(BEVFUSION, rig, torch.bfloat16, args.repeat)
    timings += bench_pool(LARGE, rig, torch.float32, min(args.repeat, 3))
    timings += bench_voxelize(torch.from_numpy(ten_sweeps(args.data)), args.repeat)
    timings = compare(timings)
    about["load, before and after"] = f"{load}, {os.getloadavg()[0]:.1f}"
    text = "\n".join(f"- {key}: {value}" for key, value in about.items()) + "\n" + table(timings)
    print(text)
    if args.out:
        figures = {"environment": about, "timings": [asdict(timing) for timing in timings]}
        args.out.write_text(json.dumps(figures, indent=2) + "\n")
        title = (__doc__ or "").partition("\n")[0]
        args.out.with_suffix(".md").write_text(f"# {title}\n\n{text}\n")


if __name__ == "__main__":
    main()
