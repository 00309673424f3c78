"""What a runtime finds in a frame, and how it gets there from a graph's outputs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...datasets.boxes import Detections
from ...kernels.numba_exp import sigmoid
from ..decoding.occupancy import OccupiedVoxels, decode_occupancy
from ..tracking import TrackedDetections
from .manifest import CenterSpec, HeadSpec, MapSpec, OccupancySpec, QuerySpec
from .state import RuntimeState


@dataclass(frozen=True)
class Perception:
    """Results in the BEV frame; a task that the model has no head for is None."""

    detections: Detections | None
    map: NDArray[np.float32] | None  # (K, X, Y) probabilities
    occupancy: OccupiedVoxels | None
    tracks: TrackedDetections | None  # None too where the frame's moment is not known
    global_from_bev: NDArray[np.float64]  # (4, 4)
    state: RuntimeState | None = None  # for the stream's next frame; None as above
    seconds: dict[str, float] = field(default_factory=dict)  # by stage


Decoder = Callable[..., Any]  # takes a head's outputs by name, without their batch axis


def decoder_of(spec: HeadSpec, num_threads: int | None = None) -> Decoder:
    """What turns a head's outputs into its task's result."""
    if isinstance(spec, CenterSpec):
        return spec
    if isinstance(spec, QuerySpec):
        return lambda heatmap, proposals=None, **outputs: spec(**outputs)
    if isinstance(spec, MapSpec):
        return lambda logits: sigmoid(logits)
    assert isinstance(spec, OccupancySpec)
    return lambda occupied, classes: decode_occupancy(
        occupied, classes, spec.threshold, num_threads
    )
