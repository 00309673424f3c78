"""Stage-by-stage time, memory and size of the model of any config.

    python tools/bench_model.py --config configs/tiny/fusion.yaml [--config overlay.yaml]
        [--device cpu|cuda] [--dtype float32|bfloat16] [--compile] [--json file]

One batch of the geometry that the config asks for: the calibration and the sweeps of the real key
frame where --data has them, made-up ones otherwise; images of noise. Times are medians after a
warm-up, in milliseconds; stages are timed in the eager model, the device waited for around each.
The whole is timed eager, with --compile also compiled, and on a GPU, from the sensors' maps on,
as a CUDA graph; each with the memory that it takes at its peak.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from bench_geometry import has_real_rig, rig_of, ten_sweeps
from bench_kernels import peak_growth_mb
from provenance import provenance
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from bevstack.datasets.batch import Batch, BoxTargets
from bevstack.perception.commands.train import run_parser
from bevstack.perception.model import FusionModel
from bevstack.perception.sparse.conv import _Conv3d

ORIGINAL = (1600, 900)  # nuScenes' images


@dataclass(frozen=True)
class Stage:
    """One part of the model."""

    name: str
    median_ms: float
    parameters: int
    gflops: float  # see count_flops


@dataclass(frozen=True)
class Mode:
    """One way of running the model."""

    name: str
    median_ms: float
    peak_mb: float | None  # memory beyond what is held before; None where it cannot be measured


def make_batch(encoder, data: Path, size: int) -> Batch:
    """``size`` equal samples, as the config's encoder would give them."""
    points = torch.from_numpy(ten_sweeps(data)) if encoder.lidar else torch.zeros(0, 5)
    low, high = torch.tensor(encoder.point_range).view(2, 3)
    points = points[((points[:, :3] >= low) & (points[:, :3] < high)).all(1)].float()
    cameras = encoder.cameras and encoder.image_size
    matrices = camera_matrices(data, encoder.image_size) if cameras else torch.zeros(0, 4, 4)
    width, height = encoder.image_size or (0, 0)
    shape = (size * len(matrices), 3, height, width)
    none, whole = torch.zeros(0), torch.zeros(0, dtype=torch.int64)
    return Batch(
        tokens=tuple(f"bench{i}" for i in range(size)),
        images=torch.randint(0, 256, shape, dtype=torch.uint8),
        image_sample=torch.arange(size).repeat_interleave(len(matrices)),
        bev_from_image=matrices.repeat(size, 1, 1),
        points=points.repeat(size, 1),
        point_sample=torch.arange(size).repeat_interleave(len(points)),
        global_from_bev=torch.eye(4, dtype=torch.float64).repeat(size, 1, 1),
        boxes=BoxTargets(
            none.view(0, 3), none.view(0, 3), none, none.view(0, 2), whole, whole, whole, whole
        ),
        box_valid=torch.ones(size, dtype=torch.bool),
        map_masks=None,
        map_valid=torch.zeros(size, dtype=torch.bool),
    )


def camera_matrices(data: Path, image_size: tuple[int, int]) -> Tensor:
    """(N, 4, 4) image to BEV of the rig, images resized to the width and cropped at the top."""
    intrinsics, poses = rig_of(data)
    scale = image_size[0] / ORIGINAL[0]
    resized = np.diag([scale, scale, 1.0])
    resized[1, 2] = image_size[1] - ORIGINAL[1] * scale
    camera_from_image = np.tile(np.eye(4), (len(poses), 1, 1))
    camera_from_image[:, :3, :3] = np.linalg.inv(resized @ intrinsics)
    return torch.from_numpy(poses @ camera_from_image).float()


class Stopwatch:
    """Times the forward passes of chosen modules."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.seconds: dict[str, list[float]] = {}
        self._start: dict[str, float] = {}

    def watch(self, name: str, module: nn.Module) -> None:
        """Time ``module`` from now on."""
        module.register_forward_pre_hook(lambda *_: self._begin(name))
        module.register_forward_hook(lambda *_: self._end(name))

    def wait(self) -> None:
        """Wait for the device."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def _begin(self, name: str) -> None:
        self.wait()
        self._start[name] = time.perf_counter()

    def _end(self, name: str) -> None:
        self.wait()
        self.seconds.setdefault(name, []).append(time.perf_counter() - self._start[name])


def stages_of(model: FusionModel) -> dict[str, nn.Module]:
    """The parts of a model, in the order in which data passes them."""
    parts: dict[str, nn.Module | None] = {"camera": model.camera}
    if model.camera is not None:
        names = ("backbone", "fpn", "lift")
        parts |= {f"  {name}": getattr(model.camera, name) for name in names}
    parts |= {"lidar": model.lidar, "fuser": model.fuser, "backbone": model.backbone}
    parts |= {f"head {task}": head for task, head in model.heads.items()}
    return {name: part for name, part in parts.items() if part is not None}


def median_ms(call: Callable[[], object], watch: Stopwatch, repeat: int) -> float:
    """Median time of a call after two to warm up."""
    seconds = []
    for i in range(repeat + 2):
        watch.wait()
        start = time.perf_counter()
        call()
        watch.wait()
        if i >= 2:
            seconds.append(time.perf_counter() - start)
    return 1e3 * statistics.median(seconds)


def bench(model: FusionModel, batch: Batch, options: argparse.Namespace) -> dict:
    """All figures of a model."""
    device = torch.device(options.device)
    dtype, watch = getattr(torch, options.dtype), Stopwatch(device)

    def forward(network: Callable[[Batch], Any] = model) -> Any:
        with torch.inference_mode(), torch.autocast(device.type, dtype, dtype != torch.float32):
            return network(batch)

    def mode(name: str, call: Callable[[], object]) -> Mode:
        return Mode(name, median_ms(call, watch, options.repeat), peak_memory_mb(call, device))

    outputs = forward()
    modes = [mode("forward", forward), mode("decode", lambda: model.decode(outputs, batch))]
    if options.compile:
        compiled = torch.compile(model)
        modes.append(mode("forward, compiled", lambda: forward(compiled)))
    if device.type == "cuda":
        # What comes before has sizes that depend on the points: no graph can hold it.
        fuse = fuse_of(model, batch, dtype)
        modes.append(mode("fuser to heads", fuse))
        modes.append(mode("fuser to heads, CUDA graph", graphed(fuse)))
    flops = count_flops(model, forward)
    parts = stages_of(model)
    for name, part in parts.items():
        watch.watch(name, part)
    for _ in range(2 + options.repeat):
        forward()
    stages = [
        Stage(name, 1e3 * statistics.median(watch.seconds[name][2:]), size_of(part), flops[name])
        for name, part in parts.items()
    ]
    return {
        "modes": [asdict(entry) for entry in modes],
        "parameters": size_of(model),
        "gflops": flops["all"],
        "stages": [asdict(stage) for stage in stages],
    }


def fuse_of(model: FusionModel, batch: Batch, dtype: torch.dtype) -> Callable[[], object]:
    """The model from the sensors' maps on, whose sizes are always the same."""
    device = batch.points.device
    cast = {"device_type": device.type, "dtype": dtype, "enabled": dtype != torch.float32}
    with torch.no_grad(), torch.autocast(**cast):
        camera = model.camera(batch)[0] if model.camera is not None else None
        lidar = model.lidar(batch) if model.lidar is not None else None

    def fuse() -> object:
        with torch.no_grad(), torch.autocast(**cast, cache_enabled=False):
            return model.fuse(camera, lidar)

    return fuse


def graphed(call: Callable[[], object]) -> Callable[[], object]:
    """A call recorded as a CUDA graph: its kernels without their launches."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            call()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        call()
    return graph.replay


def count_flops(model: FusionModel, forward: Callable[[], object]) -> dict[str, float]:
    """GFLOP of a forward pass, by stage and of "all": products of matrices, attention and
    convolutions, a multiply-add counted twice; sparse ones by the pairs of voxels that meet.

    Pooling, voxelization, norms and activations are not counted.
    """
    parts = stages_of(model)
    sparse: dict[nn.Module, float] = {}
    convolve = _Conv3d.convolve

    def counting(conv: _Conv3d, voxels: Any, weight: Tensor, *rest: Any, **more: Any) -> Any:
        result = convolve(conv, voxels, weight, *rest, **more)
        pairs = int((voxels.table(conv.geometry).rows >= 0).sum())
        sparse[conv] = 2.0 * pairs * weight.shape[-2] * weight.shape[-1]
        return result

    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)  # fused kernels have no formula
    _Conv3d.convolve = counting  # pyright: ignore[reportAttributeAccessIssue]
    try:
        with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
            forward()
    finally:
        _Conv3d.convolve = convolve
        torch.backends.mha.set_fastpath_enabled(fast)
    flops = {}
    for name, part in parts.items():
        dense = sum(counter.get_flop_counts().get(_path_of(model, part), {}).values())
        flops[name] = (dense + sum(sparse.get(m, 0.0) for m in part.modules())) / 1e9
    flops["all"] = (counter.get_total_flops() + sum(sparse.values())) / 1e9
    return flops


def peak_memory_mb(call: Callable[[], object], device: torch.device) -> float | None:
    """Memory beyond what is held before the call."""
    if device.type != "cuda":
        return peak_growth_mb(call)
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    call()
    return (torch.cuda.max_memory_allocated(device) - before) / 2**20


def _path_of(model: nn.Module, part: nn.Module) -> str:
    name = next(name for name, module in model.named_modules() if module is part)
    return f"{type(model).__name__}.{name}"


def size_of(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def table(result: dict) -> str:
    """The figures as Markdown tables."""
    lines = ["| stage | ms | GFLOP | parameters |", "| --- | ---: | ---: | ---: |"]
    for stage in result["stages"]:
        name = stage["name"].replace("  ", "&nbsp;&nbsp;")
        lines.append(
            f"| {name} | {stage['median_ms']:.1f} | {stage['gflops']:.1f} "
            f"| {stage['parameters']:,} |"
        )
    lines.append(f"| **all** | | {result['gflops']:.1f} | {result['parameters']:,} |")
    lines += ["", "| mode | ms | peak MB |", "| --- | ---: | ---: |"]
    for mode in result["modes"]:
        peak = "" if mode["peak_mb"] is None else f"{mode['peak_mb']:.0f}"
        lines.append(f"| {mode['name']} | {mode['median_ms']:.1f} | {peak} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description="Time the model of a config, stage by stage.")
    parser.add_argument("--config", action="append", required=True, help="later ones on top")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--dtype", choices=("float32", "bfloat16", "float16"), default="float32")
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--compile", action="store_true", help="time torch.compile as well")
    parser.add_argument("--repeat", type=int, default=10)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--json", type=Path, help="also write the figures there")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    configs = [text for path in options.config for text in ("--config", path)]
    config = run_parser().parse_args(configs)
    parts = run_parser().instantiate(config)
    model = parts.model.eval().to(options.device)
    batch = make_batch(parts.data.encoder, options.data, options.batch).to(options.device)
    command = f"python tools/bench_model.py {' '.join(configs)} --dtype {options.dtype}"
    load, figures = os.getloadavg()[0], bench(model, batch, options)
    result = {
        **provenance(command + (" --compile" if options.compile else "")),
        "load": max(load, os.getloadavg()[0]),  # of the whole machine
        "batch": options.batch,
        "real_calibration": has_real_rig(options.data),
        "points": len(batch.points),
        **figures,
    }
    print(f"{result['command']}\n{result['machine']}, commit {result['commit']}, "
          f"{result['date']}; load of the machine {result['load']:.1f}, the tool's own included; "
          f"{len(batch.images)} images, {len(batch.points):,} points\n")  # fmt: skip
    print(table(result))
    if options.json:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
