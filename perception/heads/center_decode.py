"""From dense centre predictions to boxes."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from ...datasets.boxes import Detections
from ...kernels.grid import BEVGrid
from ...kernels.numba_nms import circle_nms
from .rows import detections_of


def decode_centers(
    heatmap: Tensor,
    regression: Tensor,
    grid: BEVGrid,
    group_of_class: Tensor,
    allowed: Tensor,
    channels: Sequence[int],
    score_threshold: float,
    max_boxes: int,
    nms_scale: float,
) -> list[Detections]:
    """Boxes of every sample, best first; arguments as in ``CenterHead`` and ``CenterOutput``.

    Args:
        heatmap: (B, K, X, Y) logits.
        regression: (B, G, R, X, Y).
        grid: the grid of the maps.
        group_of_class: (K,) the group whose regression a class uses.
        allowed: (K, A) bool, attributes a class may have.
        channels: how the R channels split into offset, height, size, heading, velocity, attribute.
        score_threshold: lowest score given.
        max_boxes: most boxes per sample.
        nms_scale: of two boxes of a class whose centres are not further apart than this times
            their mean shorter side, only the better one is given; 0 turns that off.
    """
    score, label, cell = find_peaks(heatmap, max_boxes)
    sample = torch.arange(len(heatmap), device=heatmap.device)[:, None]
    rows = regression.flatten(3)[sample, group_of_class[label], :, cell].float()  # (B, M, R)
    offset, height, log_size, heading, velocity, logits = rows.split(list(channels), 2)
    ny = grid.shape[1]
    x, y = grid.to_metres(cell // ny + offset[..., 0], cell % ny + offset[..., 1])
    attribute = logits.masked_fill(~allowed[label], -torch.inf).argmax(2)
    attribute = attribute.where(allowed[label].any(2), -1)
    columns = [
        torch.stack([x, y], 2),
        height,
        # Bounded, so that an untrained network gives no infinite box: 5 cm to 55 m.
        log_size.clamp(-3, 4).exp(),
        torch.atan2(heading[..., 0], heading[..., 1])[..., None],
        velocity,
        torch.stack([score, label, attribute], 2),
    ]
    samples = torch.cat([column.double() for column in columns], 2).cpu().numpy()
    return [_detections(rows, score_threshold, nms_scale) for rows in samples]


def find_peaks(heatmap: Tensor, max_boxes: int) -> tuple[Tensor, Tensor, Tensor]:
    """The best local maxima of 3x3 cells over all classes of a sample.

    Args:
        heatmap: (B, K, X, Y) logits.
        max_boxes: how many M to give; fewer if the map is smaller.

    Returns:
        Score, label and flat cell, each (B, M), best first; what is no peak has score 0.
    """
    score = heatmap.float().sigmoid()
    peak = score == F.max_pool2d(score, 3, stride=1, padding=1)
    score = (score * peak).flatten(1)
    score, index = score.topk(min(max_boxes, score.shape[1]), dim=1)
    num_cells = heatmap.shape[2] * heatmap.shape[3]
    return score, index // num_cells, index % num_cells


def _detections(rows: NDArray, score_threshold: float, nms_scale: float) -> Detections:
    score = rows[:, 9]
    # Score 0 is no peak, whatever the threshold.
    rows = rows[(score >= score_threshold) & (score > 0) & np.isfinite(rows).all(1)]
    if nms_scale > 0:
        # Nearer than the mean of their shorter sides, boxes side by side would overlap.
        radius = nms_scale * rows[:, 3:5].min(1)
        rows = rows[circle_nms(rows[:, :2], rows[:, 9], radius, labels=rows[:, 10])]
    return detections_of(rows)
