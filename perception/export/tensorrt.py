"""TensorRT engines of an export: the commands that build them, and building them from Python."""

from __future__ import annotations

import shlex
from collections.abc import Iterable
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from ...datasets.frame import Frame
from ..runtime import Runtime
from ..runtime.manifest import GraphSpec, Manifest
from .recorder import Recorder

SCRIPT = "build_engines.sh"
GROWTH = 4  # the longest an axis may get, in lengths seen


@dataclass(frozen=True)
class Shapes:
    """Of one input with axes of changing length."""

    smallest: tuple[int, ...]
    usual: tuple[int, ...]
    largest: tuple[int, ...]


Profiles = dict[str, dict[str, Shapes]]  # by graph and input


def write_script(folder: Path, manifest: Manifest, shapes: Profiles, half: bool) -> Path:
    """Write the ``trtexec`` commands for all graphs of a float32 export.

    Args:
        folder: the export.
        manifest: of the export.
        shapes: of :func:`profile`.
        half: let TensorRT compute in float16 where that is faster.

    Returns:
        The script.
    """
    lines = [
        "#!/usr/bin/env bash",
        "# Builds TensorRT engines of this export; run it on the device they are for, with",
        "# TensorRT 10's trtexec on the PATH. Engines fit one device and one version of TensorRT.",
        f"# Axes of changing length may be up to {GROWTH} times as long as on the frames exported",
        "# with: give --maxShapes more where a sensor gives more.",
        "set -euo pipefail",
        'cd "$(dirname "${BASH_SOURCE[0]}")"',
    ]
    for name, graph in manifest.graphs.items():
        lines += ["", _command(name, graph, shapes[name], half)]
    path = folder / SCRIPT
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    path.chmod(0o755)
    return path


def profile(folder: Path, frames: Iterable[Frame]) -> Profiles:
    """Shapes of the inputs with axes of changing length.

    Args:
        folder: a float32 export.
        frames: raw frames, whose longest axes are the usual ones.

    Raises:
        ValueError: if no frame has what a graph takes.
    """
    recorder = Recorder()
    runtime = Runtime(folder, observe=recorder)
    manifest = runtime.manifest
    longest: dict[str, dict[str, tuple[int, ...]]] = {name: {} for name in manifest.graphs}
    state = None
    for frame in frames:
        recorder.inputs = {}
        state = runtime.run(frame, state).state
        for graph, inputs in recorder.inputs.items():
            for name, array in inputs.items():
                before = longest[graph].get(name, array.shape)
                longest[graph][name] = tuple(map(max, before, array.shape))
    found: Profiles = {}
    for name, graph in manifest.graphs.items():
        if not longest[name]:
            raise ValueError(
                f"no frame to take the lengths of axes from has what {name} takes; give more "
                "--check_frames, or another --split"
            )
        changing = [t for t in graph.inputs if any(isinstance(edge, str) for edge in t.shape)]
        found[name] = {
            tensor.name: Shapes(
                tuple(_shortest(edge) for edge in tensor.shape),
                tuple(max(n, 1) for n in seen),
                tuple(
                    GROWTH * max(n, 1) if isinstance(edge, str) else n
                    for n, edge in zip(seen, tensor.shape)
                ),
            )
            for tensor in changing
            for seen in (longest[name][tensor.name],)
        }
    return found


def _shortest(edge: int | str) -> int:
    """A table of segments of some width may be empty; a sensor's data is not."""
    if isinstance(edge, int):
        return edge
    return 0 if edge.endswith("_count") else 1


def _command(name: str, graph: GraphSpec, shapes: dict[str, Shapes], half: bool) -> str:
    options = [f"--onnx={graph.file}", f"--saveEngine={name}.engine"]
    options += ["--fp16"] if half else []
    for option, field in (("min", "smallest"), ("opt", "usual"), ("max", "largest")):
        if shapes:
            texts = (f"{k}:{'x'.join(map(str, getattr(s, field)))}" for k, s in shapes.items())
            options.append(f"--{option}Shapes={','.join(texts)}")
    return " \\\n    ".join(["trtexec", *map(shlex.quote, options)])


def is_installed() -> bool:
    """Is TensorRT's Python package here?"""
    return find_spec("tensorrt") is not None


def build_engine(onnx_file: Path, engine: Path, shapes: dict[str, Shapes], half: bool) -> None:
    """Build one engine with the Python package of TensorRT 10, on the GPU of this machine.

    Args:
        onnx_file: a graph of a float32 export.
        engine: the file to write.
        shapes: of :func:`profile`.
        half: let TensorRT compute in float16 where that is faster.

    Raises:
        ValueError: if TensorRT cannot read the graph or finds no way to run it; with its reasons.
    """
    trt: Any = import_module("tensorrt")
    logger = trt.Logger(trt.Logger.WARNING)
    builder = trt.Builder(logger)
    network = builder.create_network(0)
    parser = trt.OnnxParser(network, logger)
    if not parser.parse_from_file(str(onnx_file)):
        reasons = "; ".join(str(parser.get_error(i)) for i in range(parser.num_errors))
        raise ValueError(f"TensorRT cannot read {onnx_file}: {reasons}")
    config = builder.create_builder_config()
    if half:
        config.set_flag(trt.BuilderFlag.FP16)
    if shapes:
        optimization = builder.create_optimization_profile()
        for name, shape in shapes.items():
            optimization.set_shape(name, shape.smallest, shape.usual, shape.largest)
        config.add_optimization_profile(optimization)
    plan = builder.build_serialized_network(network, config)
    if plan is None:
        raise ValueError(f"TensorRT cannot build an engine of {onnx_file}; its log says why")
    engine.write_bytes(bytes(plan))
