"""Time sparse convolution on the CPU beside spconv's, in the same run.

    python tools/bench_sparse_conv.py [--frame centerpoint_nuscenes] [--threads 2] [--json file]

The layers of BEVFusion's voxel encoder and the whole encoder on a real frame. spconv reads its
number of threads when it is loaded, and is only right with one: it runs in processes of its own,
with one thread and with as many as ours, and is checked against ours in the first. Processes take
turns, so that what else the machine does hits all alike. A figure is the median over all runs after
a warm-up, in milliseconds; a ratio is to spconv with the number of threads that it is faster with.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from bench_kernels import environment
from torch import nn

from bevstack.kernels.grid import BEVGrid
from bevstack.kernels.neighbors import neighbors
from bevstack.perception.encoders import VoxelEncoder
from bevstack.perception.sparse import SparseConv3d, SparseTensor, SubmanifoldConv3d
from bevstack.perception.sparse.weights import to_spconv2

DATA = Path(__file__).resolve().parents[2] / "shared" / "data" / "voxels"
LAYERS = SparseConv3d, SubmanifoldConv3d
Call = Callable[[], object]


def real_frame(file: Path) -> SparseTensor:
    data = np.load(file)
    features = torch.from_numpy(data["features"].astype(np.float32))
    return SparseTensor(
        features, torch.from_numpy(data["coords"].astype(np.int32)), (41, 1440, 1440), 1
    )


def fresh(voxels: SparseTensor) -> SparseTensor:
    """The same voxels without the tables made so far."""
    return SparseTensor(voxels.features, voxels.coordinates, voxels.shape, voxels.batch_size)


def encoder() -> VoxelEncoder:
    torch.manual_seed(0)
    return VoxelEncoder(BEVGrid((-54.0, 54.0), (-54.0, 54.0), 0.6)).eval()


def layers(model: VoxelEncoder, voxels: SparseTensor) -> Iterator[tuple[str, Any, SparseTensor]]:
    """One layer of each kind, with random features at its level."""
    kinds = (m for m in model.modules() if isinstance(m, LAYERS))
    seen = set()
    for layer in kinds:
        width = layer.weight.shape[3]
        if (name := f"{layer.geometry}{tuple(layer.weight.shape)}") in seen:
            continue
        seen.add(name)
        voxels = voxels.with_features(torch.randn(len(voxels.coordinates), width))
        *kernel, channels, columns = layer.weight.shape
        kind = "submanifold" if layer.geometry.submanifold else "strided"
        shown = "x".join(map(str, kernel))
        yield (
            f"{kind} {shown} {channels}->{columns}, {len(voxels.coordinates):,} voxels",
            layer,
            voxels,
        )
        voxels = layer(voxels)


# --- What is timed --------------------------------------------------------------------------------


def native_tasks(voxels: SparseTensor) -> Iterator[tuple[str, Call]]:
    """Ours: every layer, its table, the encoder, and its training step."""
    model = encoder()
    for name, layer, inputs in layers(model, voxels):
        inputs.table(layer.geometry)
        yield f"{name}: table given", lambda layer=layer, inputs=inputs: layer(inputs)
        yield f"{name}: table made", lambda layer=layer, inputs=inputs: layer(fresh(inputs))
    yield "tables of the encoder alone", encoder_tables(voxels)
    yield "encoder forward", lambda: model.encode(fresh(voxels))
    trained = encoder().train()

    def step() -> None:
        with torch.enable_grad():
            trained.encode(fresh(voxels)).features.sum().backward()

    yield "encoder forward + backward, training", step


def encoder_tables(voxels: SparseTensor) -> Call:
    down = [layer.geometry for layer in encoder().modules() if isinstance(layer, SparseConv3d)]

    def make() -> None:
        cells, shape = voxels.coordinates, voxels.shape
        for geometry in down:
            neighbors(cells, shape, 1, submanifold=True)
            table = neighbors(cells, shape, 1, *geometry)
            cells, shape = table.coordinates, table.shape

    return make


def spconv_tasks(voxels: SparseTensor) -> Iterator[tuple[str, Call]]:
    """spconv's own modules with the same weights, put together as people do."""
    import spconv.pytorch as spconv

    def theirs(layer: Any, key: str) -> nn.Module:
        kernel, stride, padding, dilation, submanifold = layer.geometry
        sizes = (*layer.weight.shape[3:], kernel, stride)
        kind: Any = spconv.SubMConv3d if submanifold else spconv.SparseConv3d
        made = kind(*sizes, padding=padding, dilation=dilation, bias=False, indice_key=key)
        made.weight.data = to_spconv2(layer.weight.data).contiguous()
        return made.eval()

    def tensor(x: SparseTensor, pairs: dict | None = None):
        given = spconv.SparseConvTensor(x.features, x.coordinates, list(x.shape), x.batch_size)
        given.indice_dict = {} if pairs is None else pairs
        return given

    class Encoder(nn.Module):
        def __init__(self, model: VoxelEncoder):
            super().__init__()
            self.stages = [m for m in model.modules() if isinstance(m, LAYERS)]
            self.norms = [m for m in model.modules() if isinstance(m, nn.BatchNorm1d)]
            level, convs = 0, []
            for layer in self.stages:
                convs.append(theirs(layer, f"{level} {layer.geometry.submanifold}"))
                level += not layer.geometry.submanifold
            self.convs = nn.ModuleList(convs)

        def forward(self, x):
            within = 0  # convolutions of the level so far
            first = True
            kept = x.features
            for conv, norm, layer in zip(self.convs, self.norms, self.stages):
                x = conv(x)
                features = norm(x.features)
                residual = layer.geometry.submanifold and not first and within % 2 == 1
                within = within + 1 if layer.geometry.submanifold and not first else 0
                first = False
                x = x.replace_feature((features + kept if residual else features).relu_())
                if within % 2 == 0:
                    kept = x.features
            return x

    model = encoder()
    for name, layer, inputs in layers(model, voxels):
        module, pairs = theirs(layer, "only"), {}
        module(tensor(inputs, pairs))

        def given(module=module, inputs=inputs, pairs=pairs):
            return module(tensor(inputs, dict(pairs)))

        def made(module=module, inputs=inputs):
            return module(tensor(inputs))

        yield f"{name}: table given", given
        yield f"{name}: table made", made
    network = Encoder(model).eval()
    if os.environ.get("OMP_NUM_THREADS") == "1":
        check(model.encode(fresh(voxels)), network(tensor(voxels)))
    yield "encoder forward", lambda: network(tensor(voxels))


def check(ours: SparseTensor, theirs) -> None:
    batch, z, y, x = theirs.indices.long().unbind(1)
    Z, Y, X = theirs.spatial_shape
    order = (((batch * Z + z) * Y + y) * X + x).argsort()
    assert torch.equal(ours.coordinates, theirs.indices[order])
    scale = ours.features.abs().max()
    torch.testing.assert_close(
        theirs.features[order] / scale, ours.features / scale, rtol=1e-4, atol=1e-5
    )


# --- Processes ------------------------------------------------------------------------------------


@torch.no_grad()
def work(method: str, file: Path, threads: int, repeat: int, only: str) -> None:
    """Time one method in this process; prints JSON: milliseconds of every run, by task."""
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    tasks = native_tasks if method == "native" else spconv_tasks
    times = {}
    for name, call in tasks(real_frame(file)):
        if only not in name:
            continue
        call()
        runs = times.setdefault(name, [])
        for _ in range(repeat):
            start = time.perf_counter()
            call()
            runs.append(1e3 * (time.perf_counter() - start))
    print(json.dumps(times))


def run_all(args: argparse.Namespace) -> dict[str, dict[str, list[float]]]:
    """Milliseconds by method and task; processes take turns."""
    methods = [("spconv", 1), ("spconv", args.threads), ("native", 1), ("native", args.threads)]
    times: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for _ in range(args.rounds):
        for method, threads in dict.fromkeys(methods):
            command = [sys.executable, __file__, "--worker", method, "--threads", str(threads)]
            command += ["--frame", args.frame, "--data", str(args.data)]
            command += ["--repeat", str(args.repeat), "--only", args.only]
            env = {**os.environ, "OMP_NUM_THREADS": str(threads)}
            done = subprocess.run(command, env=env, capture_output=True, text=True)
            if done.returncode:
                sys.exit(f"{method} with {threads} threads failed:\n{done.stderr}")
            for task, runs in json.loads(done.stdout.splitlines()[-1]).items():
                times[f"{method}, {threads} thread{'s' * (threads > 1)}"][task] += runs
    return times


def report(times: dict[str, dict[str, list[float]]]) -> list[dict]:
    """Print and return a row for every task and method."""
    rows = []
    native = next(method for method in times if method.startswith("native"))
    for task in times[native]:
        medians = {m: statistics.median(runs[task]) for m, runs in times.items() if task in runs}
        base = [value for method, value in medians.items() if method.startswith("spconv")]
        print(f"\n{task}")
        for method, value in medians.items():
            ratio = min(base) / value if base else None
            fastest = min(times[method][task])
            row = {"task": task, "method": method, "median_ms": value, "fastest_ms": fastest}
            rows.append(row | {"ratio": ratio})
            shown = "" if ratio is None else f"{ratio:6.2f} times"
            print(f"  {method:24} {value:9.2f} ms, fastest {fastest:9.2f} {shown}")
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--frame", default="centerpoint_nuscenes", help="a file with features")
    parser.add_argument("--data", type=Path, default=DATA, help="folder with real voxels")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--repeat", type=int, default=5, help="runs of a task in a process")
    parser.add_argument("--rounds", type=int, default=3, help="processes of a method")
    parser.add_argument("--only", default="", help="time tasks with this in their name alone")
    parser.add_argument("--json", type=Path, help="write the figures here as well")
    parser.add_argument("--worker", choices=["native", "spconv"], help=argparse.SUPPRESS)
    args = parser.parse_args()
    file = args.data / f"{args.frame}.npz"
    if not file.exists():
        parser.error(f"{file} is missing; give the folder of the voxels with --data")
    if args.worker:
        work(args.worker, file, args.threads, args.repeat, args.only)
        return
    about = environment(args.threads, args.frame)
    print(" | ".join(f"{key} {value}" for key, value in about.items()))
    rows = report(run_all(args))
    if args.json:
        args.json.write_text(json.dumps({"environment": about, "timings": rows}, indent=2) + "\n")


if __name__ == "__main__":
    main()
