"""A frame as the graphs of an export see it: raw arrays, for programs in other languages.

A folder with a file per array, little-endian and row by row, and ``frame.txt``, whose lines are
words parted by one space, in the order in which a program needs them::

    bevstack-frame 1
    token TOKEN
    graph FILE                                    what follows is of this graph
    input NAME DTYPE NUMBER_OF_AXES LENGTHS FILE  - for FILE: the output NAME of a graph before
    output NAME DTYPE NUMBER_OF_AXES LENGTHS FILE

DTYPE is numpy's name: float32, int64, int32, uint8, bool.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...datasets.frame import Frame
from .manifest import GraphSpec
from .runtime import Runtime
from .session import RuntimeOptions

HEADER = "frame.txt"


@dataclass(frozen=True)
class GraphRun:
    """A graph with what went in and what came out."""

    graph: GraphSpec
    inputs: dict[str, NDArray]
    outputs: dict[str, NDArray]


def record(
    folder: Path | str, frames: Sequence[Frame], options: RuntimeOptions | None = None
) -> list[GraphRun]:
    """Run a stream of frames, and give what the graphs did at the last one, in their order.

    Args:
        folder: what ``bevstack export`` wrote.
        frames: one, or for a model with memory or a learned affinity those before it too.
        options: of the runtime.

    Raises:
        DataError: see ``Runtime``.
    """
    runs: list[GraphRun] = []

    def observe(graph: GraphSpec, inputs: Mapping[str, Any], outputs: Mapping[str, Any]) -> None:
        runs.append(GraphRun(graph, _arrays(inputs), _arrays(outputs)))

    runtime, state = Runtime(folder, options, observe), None
    for frame in frames:
        runs.clear()
        state = runtime.run(frame, state).state
    return runs


def write_dump(folder: Path | str, token: str, runs: Sequence[GraphRun]) -> None:
    """Write the folder; files that are there are written over, the header last."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    lines, made = ["bevstack-frame 1", f"token {token}"], set()
    for run in runs:
        lines.append(f"graph {run.graph.file}")
        for kind, arrays in (("input", run.inputs), ("output", run.outputs)):
            for name, array in arrays.items():
                file = f"{Path(run.graph.file).stem}.{name}.bin"
                if kind == "input" and name in made:
                    file = "-"
                else:
                    little = array.dtype.newbyteorder("<")
                    np.ascontiguousarray(array, little).tofile(folder / file)
                words = name, array.dtype.name, array.ndim, *array.shape, file
                lines.append(" ".join(map(str, (kind, *words))))
        made |= run.outputs.keys()
    (folder / HEADER).write_text("\n".join(lines) + "\n", encoding="utf-8")


def _arrays(values: Mapping[str, Any]) -> dict[str, NDArray]:
    """Copies, since the runtime uses its buffers again."""
    return {
        name: np.array(value if isinstance(value, np.ndarray) else value.numpy())
        for name, value in values.items()
    }
