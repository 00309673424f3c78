"""The dense part of a model as an AOTInductor package: compiled ahead of time, for PyTorch users.

    run = torch._inductor.aoti_load_package("fusion_heads.pt2")
    heatmap, *others = run(camera_bev, lidar_bev)

What goes in and comes out, and in which order, is what the manifest says of the package.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ...datasets.frame import Frame
from ..model import FusionModel
from ..runtime import Runtime, read_manifest
from ..runtime.manifest import GraphSpec, TensorSpec, sha256_of, write_manifest
from .graphs import HeadsGraph
from .parity import Difference
from .recorder import Feeds, Recorder
from .trace import arguments_of, prepared

PACKAGE = "fusion_heads.pt2"
TOLERANCE = 1e-3  # the most that an output may differ by from the model's


def write_package(
    model: FusionModel, folder: Path, frames: Iterable[Frame]
) -> dict[str, Difference]:
    """Compile fusion, BEV backbone and heads, and check them on frames.

    Args:
        model: the trained model; it stays as it was.
        folder: its float32 export in parts, to which the package and its description are added.
        frames: raw frames to compare on, one at least.

    Returns:
        How far the package's outputs are from the model's, by name.

    Raises:
        ValueError: if there is no C++ compiler, or the package is not the model.
    """
    find_compiler()
    model = prepared(model)
    if "affinity" in model.heads and read_manifest(folder).affinity is None:
        model.heads.pop("affinity")
    part: Any = HeadsGraph(model).eval()
    inputs = [arguments_of(part, seen) for seen in _heads_inputs(folder, frames)]
    path = folder / PACKAGE
    with torch.no_grad():
        program = torch.export.export(part, inputs[0])
        torch._inductor.aoti_compile_and_package(program, package_path=str(path))
        run = torch._inductor.aoti_load_package(str(path))
        differences: dict[str, Difference] = {}
        for arguments in inputs:
            found, expected = run(*arguments), part(*arguments)
            for port, ours, theirs in zip(part.outputs, found, expected, strict=True):
                differences.setdefault(port.name, Difference()).add(ours.numpy(), theirs.numpy())
    worst = max(differences, key=lambda name: differences[name].largest)
    if differences[worst].largest > TOLERANCE:
        raise ValueError(
            f"{path} is not the same model: {worst} differs by {differences[worst].largest:.1e}; "
            "please report this"
        )
    spec = GraphSpec(
        path.name,
        sha256_of(path),
        path.stat().st_size,
        _tensors([port.name for port in part.inputs], inputs[0]),
        _tensors([port.name for port in part.outputs], expected),
    )
    write_manifest(folder, replace(read_manifest(folder), package=spec))
    return differences


def find_compiler() -> str:
    """The C++ compiler that Inductor will use.

    Raises:
        ValueError: if there is none.
    """
    from torch._inductor.cpp_builder import get_cpp_compiler

    try:
        return get_cpp_compiler()
    except Exception as error:  # of a class that moves between versions
        raise ValueError(
            "an AOTInductor package is compiled C++, and there is no compiler here; install g++ or "
            "clang++, or set CXX to one"
        ) from error


def _heads_inputs(folder: Path, frames: Iterable[Frame]) -> list[Feeds]:
    """What the heads' graph is given on frames."""
    recorder = Recorder()
    runtime = Runtime(folder, observe=recorder)
    found, state = [], None
    for frame in frames:
        state = runtime.run(frame, state).state
        found.append(recorder.inputs[runtime.manifest.heads_graph])
    return found


def _tensors(names: Sequence[str], tensors: Sequence[Tensor]) -> tuple[TensorSpec, ...]:
    return tuple(
        TensorSpec(name, np.dtype(tensor.numpy().dtype).name, tuple(tensor.shape))
        for name, tensor in zip(names, tensors, strict=True)
    )
