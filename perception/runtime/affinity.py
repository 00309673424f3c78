"""Learned affinities between the detections of two frames of a stream."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from ..decoding.affinity import AffinityInputs, LinkedFrame
from ..tracking.affinity import Affinity
from .manifest import AffinitySpec
from .session import GraphSession

if TYPE_CHECKING:
    from onnxruntime import OrtValue

MAP = "affinity.map"  # output of the heads' graph
MAP_BEFORE, MAP_NOW = "map_before", "map_now"  # inputs, beside those of AffinityInputs
SCORES = "affinity.pair", "affinity.row", "affinity.column"


class AffinityLink:
    """Asks the affinity graph about two frames.

    Args:
        spec: of the manifest.
        graph: the session.
    """

    def __init__(self, spec: AffinitySpec, graph: GraphSession):
        self.spec, self._graph = spec, graph

    def __call__(self, before: LinkedFrame, now: LinkedFrame) -> Affinity | None:
        """What becomes of the detections; None if the frames are not consecutive."""
        return self.spec.link(before, now, self._scores)

    def _scores(
        self, before: OrtValue, now: OrtValue, inputs: AffinityInputs
    ) -> tuple[NDArray, NDArray, NDArray]:
        given = {name: _at_least_one(array) for name, array in inputs._asdict().items()}
        found = self._graph.run({MAP_BEFORE: before, MAP_NOW: now, **given})
        pair, row, column = (found[name].numpy() for name in SCORES)
        lengths = len(inputs.told_pairs), len(inputs.told_before), len(inputs.told_now)
        return pair[: lengths[0]], row[: lengths[1]], column[: lengths[2]]


def _at_least_one(array: NDArray) -> NDArray:
    """Runtimes differ in what they make of empty arrays; what comes of this row is cut off."""
    return array if len(array) else np.zeros((1, *array.shape[1:]), array.dtype)
