"""8-bit graphs of a float export; the layers that this hurts, by measurement, stay in float."""

from __future__ import annotations

import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...datasets.frame import Frame
from ...datasets.sensors import SensorInputs
from ..runtime import Moment, Perception, Runtime, RuntimeOptions, RuntimeState, read_manifest
from ..runtime.manifest import QuantizationSpec, write_manifest
from .agreement import agreement
from .quantize import QuantizableGraph
from .recorder import Feeds, Recorder
from .trace import check_onnx, describe_onnx

SEARCH_FRAMES = 4  # on which single layers are measured
TIMED_RUNS = 7

Layer = tuple[str, str]  # graph, node


def to_int8(
    folder: Path, frames: Sequence[Frame], least: float, say: Callable[[str], Any] = print
) -> QuantizationSpec:
    """Convert the graphs of a float32 export in place, and its manifest.

    Every layer is quantised alone, and its error seen in the outputs of the heads. Those with the
    largest errors then stay in float, as few as bring the results near enough to the float
    model's. A graph that 8 bits do not make faster computes in float. All weights are stored in
    8 bits, but for a learned affinity's, which stays as it is.

    Args:
        folder: the export.
        frames: raw frames to calibrate and to measure with.
        least: the agreement (see ``agreement``) that every task has to reach on them.
        say: takes lines of progress.

    Raises:
        ValueError: if there is no frame, or 8-bit weights alone change the results too much.
    """
    if not frames:
        raise ValueError("8-bit export needs frames to calibrate with; give --root and --version")
    search = _Search(folder, frames)
    slow = [name for name in search.graphs if not search.is_faster(name)]
    for name in slow:
        say(f"{name}: 8 bits are not faster here; it computes in float, with 8-bit weights")
    layers = [(g, node) for g, graph in search.graphs.items() for node in graph.layers]
    errors = {layer: search.error_of(layer) for layer in layers if layer[0] not in slow}
    ranked = sorted(errors, key=lambda layer: errors[layer], reverse=True)
    with tempfile.TemporaryDirectory() as scratch:
        kept, reached = _fewest(
            len(ranked), lambda n: search.reached(ranked[n:], Path(scratch)), least
        )
    if min(reached.values(), default=1.0) < least:
        raise ValueError(
            f"with 8-bit weights, and all layers in float, the results agree to {_words(reached)}; "
            f"wanted {least:.3f}. Lower --agreement or export in fp16"
        )
    say(f"{len(layers) - len(ranked) + kept} of {len(layers)} layers stay in float; "
        f"{len(frames)} frames agree to {_words(reached)}")  # fmt: skip
    search.write(ranked[kept:], folder)
    floats: dict[str, list[str]] = {name: [] for name in search.graphs}
    for graph, node in sorted(set(layers) - set(ranked[kept:]), key=layers.index):
        floats[graph].append(node)
    spec = QuantizationSpec(
        len(frames),
        {task: round(share, 4) for task, share in reached.items()},
        {name: tuple(nodes) for name, nodes in floats.items()},
    )
    write_manifest(folder, replace(read_manifest(folder), quantization=spec))
    return spec


def _fewest(
    count: int, reached: Callable[[int], dict[str, float]], least: float
) -> tuple[int, dict[str, float]]:
    """The smallest number of layers in float that does, up to ``count``, and what it reaches.

    Numbers are doubled until one does, and then halved in between; that more layers in float are
    better is true of large differences only, so that a smaller number might do as well.
    """
    good, found = 0, reached(0)
    bad = -1
    while min(found.values(), default=1.0) < least and good < count:
        bad, good = good, min(max(2 * good, 1), count)
        found = reached(good)
    while good - bad > 1:
        middle = (good + bad) // 2
        there = reached(middle)
        if min(there.values(), default=1.0) < least:
            bad = middle
        else:
            good, found = middle, there
    return good, found


def _words(reached: dict[str, float]) -> str:
    return ", ".join(f"{task} {share:.3f}" for task, share in reached.items())


@dataclass(frozen=True)
class _Observed:
    """One frame, as the float model sees it."""

    sensors: SensorInputs
    moment: Moment
    state: RuntimeState | None  # of the frame before
    feeds: dict[str, Feeds]  # by graph; a sensor that sees nothing has none
    outputs: list[NDArray]  # of the heads
    result: Perception


class _Search:
    """The float graphs, and how candidates differ from them."""

    def __init__(self, folder: Path, frames: Sequence[Frame]):
        self.folder, self.manifest = folder, read_manifest(folder)
        self.heads = self.manifest.heads_graph
        self._float_heads = _session(folder / self.manifest.graphs[self.heads].file)
        self.frames = list(self._observe(frames))
        self.graphs: dict[str, QuantizableGraph] = {}
        for name, spec in self.manifest.graphs.items():
            if self.manifest.affinity is not None and name == self.manifest.affinity.graph:
                continue  # small, and of few rows: stays as it is
            feeds = [frame.feeds[name] for frame in self.frames if name in frame.feeds]
            if not feeds:
                raise ValueError(f"no frame to calibrate with has what {spec.file} takes")
            self.graphs[name] = QuantizableGraph(folder / spec.file, feeds)

    def _observe(self, frames: Sequence[Frame]) -> Iterator[_Observed]:
        recorder = Recorder()
        runtime, state = Runtime(self.folder, observe=recorder), None
        for frame in frames:
            recorder.inputs = {}
            sensors, moment = runtime.sensors(frame), Moment(frame.scene, frame.timestamp_us)
            result = runtime.infer(sensors, moment, state)
            outputs = self._float_heads.run(None, recorder.inputs[self.heads])
            yield _Observed(sensors, moment, state, recorder.inputs, outputs, result)
            state = result.state

    def is_faster(self, name: str) -> bool:
        """Does a graph with all layers in 8 bits take less time than in float?"""
        graph = self.graphs[name]
        feeds = next(frame.feeds[name] for frame in self.frames if name in frame.feeds)
        sessions = [
            _session(graph.quantized(layers).SerializeToString()) for layers in ((), graph.layers)
        ]
        seconds: list[list[float]] = [[], []]
        for _ in range(TIMED_RUNS):  # in turn: what else the machine does meets both
            for session, times in zip(sessions, seconds):
                start = time.perf_counter()
                session.run(None, feeds)
                times.append(time.perf_counter() - start)
        in_float, in_8_bits = map(np.median, seconds)
        return bool(in_8_bits < in_float)

    def error_of(self, layer: Layer) -> float:
        """Mean square error of the heads' outputs, relative to their variance, by one layer."""
        name, node = layer
        session = _session(self.graphs[name].quantized((node,)).SerializeToString())
        errors = []
        for frame in self._spread():
            if name not in frame.feeds:
                continue
            found = session.run(None, frame.feeds[name])
            if name != self.heads:
                made = [tensor.name for tensor in session.get_outputs()]
                feeds = frame.feeds[self.heads] | dict(zip(made, found))
                found = self._float_heads.run(None, feeds)
            for ours, theirs in zip(found, frame.outputs, strict=True):
                if np.issubdtype(theirs.dtype, np.floating):
                    errors.append(np.square(ours - theirs).mean() / (theirs.var() + 1e-12))
        return float(np.mean(errors)) if errors else 0.0

    def _spread(self) -> list[_Observed]:
        step = -(-len(self.frames) // SEARCH_FRAMES)
        return self.frames[::step]

    def reached(self, layers: Sequence[Layer], scratch: Path) -> dict[str, float]:
        """Agreement of results with the float model's, with these layers in 8 bits."""
        shutil.copytree(self.folder, scratch, dirs_exist_ok=True)
        self.write(layers, scratch)
        runtime = Runtime(scratch, RuntimeOptions(verify=False))
        return agreement(
            (frame.result, runtime.infer(frame.sensors, frame.moment, frame.state))
            for frame in self.frames
        )

    def write(self, layers: Sequence[Layer], folder: Path) -> None:
        """Write the graphs, with these layers in 8 bits, and their manifest."""
        import onnx

        graphs = dict(self.manifest.graphs)
        for name, graph in self.graphs.items():
            path = folder / graphs[name].file
            onnx.save(graph.quantized({node for g, node in layers if g == name}), str(path))
            check_onnx(path)
            graphs[name] = describe_onnx(path)
        write_manifest(folder, replace(self.manifest, precision="int8", graphs=graphs))


def _session(model: Path | bytes) -> Any:
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.log_severity_level = 3
    source = model if isinstance(model, bytes) else str(model)
    return ort.InferenceSession(source, options, providers=["CPUExecutionProvider"])
