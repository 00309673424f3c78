"""How long a frame takes: exported models in ONNX Runtime, PyTorch eager, PyTorch compiled.

    python tools/bench_runtime.py RUN_FOLDER EXPORT... [--frames 40] [--threads 2] [--compile]
        [--repeat 100] [--out docs/results/runtime.json]

The frames are read once, of the run's validation split, and given to all; times go from sensor
arrays to boxes, map and voxels; all take turns, and a first pass is not counted. Prints medians and
99th percentiles, the runtime's by stage, and the ratio to PyTorch eager; and whether repeated runs
on one frame have the same bits.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from provenance import provenance

from bevstack.datasets.batch import Batch
from bevstack.datasets.dataset import FrameDataset
from bevstack.perception.commands.train import load_run
from bevstack.perception.evaluation.exported import sensors_of
from bevstack.perception.runtime import Runtime, RuntimeOptions
from bevstack.perception.runtime.latency import Latencies

TURN = 6  # frames


def figures(
    contenders: dict[str, tuple[Callable[[Any], Any], list[Any]]],
) -> dict[str, dict[str, float]]:
    """Median and p99 of every contender's calls, milliseconds.

    They take turns of some frames, so that what else the machine does meets all of them; a first
    pass over all frames is not counted: compilers specialise on what they see.
    """
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    for counted in (False, True):
        length = max(len(frames) for _, frames in contenders.values())
        for first in range(0, length, TURN):
            for name, (run, frames) in contenders.items():
                for i, frame in enumerate(frames[first : first + TURN]):
                    start = time.perf_counter()
                    run(frame)
                    if counted and i > 0:  # the first finds the caches full of another's weights
                        seconds[name].append(time.perf_counter() - start)
    return {
        name: {
            "median_ms": round(1e3 * float(np.median(times)), 2),
            "p99_ms": round(1e3 * float(np.percentile(times, 99)), 2),
        }
        for name, times in seconds.items()
    }


def have_the_same_bits(runtime: Runtime, sensors: Any, runs: int) -> bool:
    """Are all raw outputs of so many runs on one frame equal?"""
    first = {name: value.copy() for name, value in runtime.outputs(sensors).items()}
    again = (runtime.outputs(sensors) for _ in range(runs - 1))
    return all(np.array_equal(run[name], first[name]) for run in again for name in first)


def _timed(runtime: Runtime, clock: Latencies, sensors: Any) -> None:
    clock.add(runtime.infer(sensors).seconds)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("run_folder", type=Path)
    parser.add_argument("exports", type=Path, nargs="+", help="of one precision each")
    parser.add_argument("--frames", type=int, default=40)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeat", type=int, default=100, help="runs that are compared")
    parser.add_argument("--compile", action="store_true", help="measure torch.compile too")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    model, data, _ = load_run(options.run_folder)
    model.eval()
    dataset = FrameDataset(data.reader(data.val_split), data.encoder, data.val_steps)
    read = (dataset[i] for i in range(min(options.frames, len(dataset))))
    batches = [batch for batch in read if isinstance(batch, Batch)]

    def pytorch(network: Any) -> Callable[[Any], Any]:
        def run(batch: Any) -> Any:
            with torch.inference_mode():
                return model.decode(network(batch), batch)

        return run

    contenders, stages, same = {}, {}, {}
    sensors = [sensors_of(batch, 0) for batch in batches]
    for export in options.exports:
        runtime = Runtime(export, RuntimeOptions(threads=options.threads))
        name = f"runtime {runtime.manifest.precision}"
        clock = stages[name] = Latencies()
        infer = partial(_timed, runtime, clock)
        contenders[name] = infer, sensors
        same[name] = have_the_same_bits(runtime, sensors[0], options.repeat)
    contenders["PyTorch eager"] = pytorch(model), batches
    if options.compile:
        contenders["PyTorch compiled"] = pytorch(torch.compile(model)), batches
    results = figures(contenders)
    eager = results["PyTorch eager"]["median_ms"]
    for name, found in results.items():
        print(f"{name:<18} median {found['median_ms']:8.1f} ms   p99 {found['p99_ms']:8.1f} ms   "
              f"{eager / found['median_ms']:.2f} x eager")  # fmt: skip
    for name, clock in stages.items():
        bits = "the same bits" if same[name] else "DIFFERENT bits"
        print(f"{name}: {options.repeat} runs on one frame have {bits}; milliseconds by stage:")
        clock.print()
    if options.out is not None:
        content = {"provenance": provenance(" ".join(sys.argv)), "threads": options.threads,
                   "frames": len(batches), "ms": results,
                   "same_bits": {"runs": options.repeat, **same},
                   "stages": {name: clock.to_json() for name, clock in stages.items()}}  # fmt: skip
        options.out.write_text(json.dumps(content, indent=2) + "\n")


if __name__ == "__main__":
    main()
