"""From object queries to boxes (see ``TransFusionOutput`` for what is predicted)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ...datasets.boxes import Detections
from ...datasets.geometry import angle_of
from ...kernels.grid import BEVGrid
from .attributes import attribute_of_speed
from .rows import detections_of, suppress


@dataclass(frozen=True)
class QueryDecoder:
    """How a ``TransFusionHead``'s predictions become boxes.

    Args:
        grid: the grid of the map that the queries were taken from.
        classes: detection classes, in the order of the labels.
        top: the height was predicted of a box's top, not of its middle.
        score_threshold: boxes with a lower score are not given.
        center_range: x0, y0, z0, x1, y1, z1, edges included; boxes whose centre is outside are not
            given; None keeps all.
        nms_scale: see ``rows.suppress``.
    """

    grid: BEVGrid
    classes: tuple[str, ...]
    top: bool
    score_threshold: float
    center_range: tuple[float, float, float, float, float, float] | None
    nms_scale: float = 0.0

    def __call__(
        self,
        label: NDArray,
        peak: NDArray,
        logits: NDArray,
        center: NDArray,
        height: NDArray,
        size: NDArray,
        heading: NDArray,
        velocity: NDArray,
    ) -> Detections:
        """Boxes of one sample, best first; equal scores in the order of the queries.

        Args:
            label: (Q,) class that a query was started for.
            peak: (Q,) probability of that class at the query's cell.
            logits: (K, Q) class logits of the refined queries.
            center: (2, Q) in cells.
            height: (1, Q) metres.
            size: (3, Q) logarithm of length, width, height in metres.
            heading: (2, Q) sine and cosine of yaw.
            velocity: (2, Q) m/s.
        """
        probability = _sigmoid(logits.astype(np.float32)[label, np.arange(len(label))])
        score = probability * peak.astype(np.float32)
        x, y = self.grid.to_metres(*center.astype(np.float64))
        # Bounded, so that an untrained network gives no infinite box: 5 cm to 55 m.
        edges = np.exp(size.astype(np.float64).clip(-3, 4))
        z = height[0].astype(np.float64) - (edges[2] / 2 if self.top else 0)
        yaw = angle_of(heading[0], heading[1])
        attribute = attribute_of_speed(self.classes, label, velocity.T)
        rows = np.stack([x, y, z, *edges, yaw, *velocity, score, label, attribute], 1)
        rows = rows[np.argsort(-score, kind="stable")]
        kept = (rows[:, 9] >= self.score_threshold) & np.isfinite(rows).all(1)
        if self.center_range is not None:
            low, high = np.array(self.center_range).reshape(2, 3)
            kept &= ((rows[:, :3] >= low) & (rows[:, :3] <= high)).all(1)
        return detections_of(suppress(rows[kept], self.nms_scale))


def _sigmoid(x: NDArray) -> NDArray:
    return 1 / (1 + np.exp(-x))
