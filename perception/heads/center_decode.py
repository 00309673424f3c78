"""From dense centre predictions to boxes: the part that runs where the maps are."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ...datasets.boxes import Detections
from ..decoding.centers import CenterDecoder


def decode_centers(
    heatmap: Tensor, regression: Tensor, group_of_class: Tensor, decoder: CenterDecoder
) -> list[Detections]:
    """Boxes of every sample, best first.

    Args:
        heatmap: (B, K, X, Y) logits.
        regression: (B, G, R, X, Y).
        group_of_class: (K,) the group whose regression a class uses.
        decoder: makes boxes of the peaks.
    """
    score, label, cell = find_peaks(heatmap, decoder.max_boxes)
    sample = torch.arange(len(heatmap), device=heatmap.device)[:, None]
    rows = regression.flatten(3)[sample, group_of_class[label], :, cell]  # (B, M, R)
    columns = (t.detach().cpu().numpy() for t in (score, label, cell, rows.float()))
    return [decoder.boxes(*of_sample) for of_sample in zip(*columns, strict=True)]


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
