"""Makes an untrained model fit to be compared with its export."""

from __future__ import annotations

import torch
from torch import nn

from ...datasets.batch import Batch
from ..heads import CenterHead, TransFusionHead
from ..model import FusionModel

SPREAD = 2.0  # standard deviation of heat-map logits, about that of a trained model


@torch.no_grad()
def spread_peaks(model: FusionModel, batch: Batch) -> None:
    """Scale the last layer of heat-maps, in place, so that their logits differ.

    At the start of a training they are equal but for the last digits of float32: which cells are
    the peaks that boxes are read at is then a matter of rounding, and comparing boxes tells
    nothing about an export.

    Args:
        model: with random weights, in evaluation mode.
        batch: to measure the logits on.
    """
    for head in model.heads.values():
        if isinstance(head, TransFusionHead):
            layers = [head.heatmap[-1]]
        elif isinstance(head, CenterHead):
            layers = [branch[-1] for branch in head.heatmap]  # pyright: ignore
        else:
            continue
        logits = model(batch)[head.task].heatmap
        spread = (logits - logits.mean((0, 2, 3), keepdim=True)).std()
        for layer in layers:
            assert isinstance(layer, nn.Conv2d)
            layer.weight *= SPREAD / spread
