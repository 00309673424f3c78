"""What a model with memory looks back at: earlier maps, as inputs of its graph.

``past_map_0`` ... (1, C, X, Y), the graph's own output ``fused_bev`` at earlier moments, the latest
first; ``past_transform`` (1, K, 4, 4) to the BEV frame of each from the present one; ``past_age``
(1, K) seconds; ``past_valid`` (1, K), 1 for a moment that counts and 0 for none. Which moments
count is the rule of ``perception/memory``: of the same scene, earlier, and not too old.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...datasets.geometry import inverse
from .manifest import MemorySpec
from .state import Moment, Remembered

FUSED = "fused_bev"  # the output that is to be remembered


def recalled(
    spec: MemorySpec, memory: Sequence[Remembered], moment: Moment, global_from_bev: NDArray
) -> dict[str, Any]:
    """Inputs of the graph by name; maps of moments that do not count are left out.

    Args:
        spec: of the manifest.
        memory: what is remembered, in the order in which it came.
        moment: the present one.
        global_from_bev: (4, 4) float64, of the present.
    """
    ages = [(moment.timestamp_us - past.moment.timestamp_us) / 1e6 for past in memory]
    found = [
        (age, past)
        for age, past in zip(ages, memory)
        if past.moment.scene == moment.scene and 0 < age <= spec.max_age
    ]
    found = sorted(found, key=lambda pair: pair[0])[: spec.moments]
    transform = np.tile(np.eye(4, dtype=np.float32), (1, spec.moments, 1, 1))
    age, valid = np.zeros((2, 1, spec.moments), np.float32)
    inputs: dict[str, Any] = {}
    for k, (seconds, past) in enumerate(found):
        inputs[f"past_map_{k}"] = past.map
        # In float64 up to here: global coordinates are kilometres, and cells are decimetres.
        transform[0, k] = inverse(past.global_from_bev) @ global_from_bev
        age[0, k], valid[0, k] = seconds, 1
    return {**inputs, "past_transform": transform, "past_age": age, "past_valid": valid}
