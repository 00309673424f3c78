"""What graphs are given on frames: to calibrate with, to compile for, to take shapes from."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..runtime.manifest import GraphSpec

Feeds = dict[str, NDArray]  # a graph's inputs by name


class Recorder:
    """Keeps copies of the last inputs of every graph: ``observe`` of a ``Runtime``."""

    def __init__(self) -> None:
        self.inputs: dict[str, Feeds] = {}  # by graph

    def __call__(
        self, graph: GraphSpec, inputs: Mapping[str, Any], outputs: Mapping[str, Any]
    ) -> None:
        """Called after every run of a graph."""
        self.inputs[Path(graph.file).stem] = {
            name: np.array(value if isinstance(value, np.ndarray) else value.numpy())
            for name, value in inputs.items()
        }
