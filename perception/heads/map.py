"""Map segmentation."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...datasets.batch import Batch
from ...datasets.nuscenes.classes import MAP_CLASSES
from ...kernels.grid import BEVGrid
from ..layers import ConvBlock, output_conv
from ..losses import dice_loss, mean_over_processes, sigmoid_focal_loss


@dataclass(frozen=True)
class MapOutput:
    """Predicted map layers, which may overlap."""

    logits: Tensor  # (B, K, X, Y) on the map grid


class MapHead(nn.Module):
    """Map layers on a grid of their own, resampled from the BEV map (Liu et al., BEVFusion).

    Args:
        in_channels: channels of the BEV map.
        grid: the grid of the BEV map.
        map_grid: the grid to predict on.
        classes: map layers, in the order of the label masks.
        channels: width of the classifier.
        gamma: exponent of the focal loss.
        dice_weight: weight of a Dice loss beside it; 0 as in BEVFusion. Short trainings need it:
            the focal loss alone leaves thin layers below every threshold for a long time.
        reduce: narrow the BEV map to ``channels`` before it is resampled, where cells are fewest;
            published models classify the full width.
        layers: 3x3 convolutions of the classifier.
    """

    task = "map"
    rows: Tensor  # (X_map, 1) see sampling_positions
    columns: Tensor  # (1, Y_map)

    def __init__(
        self,
        in_channels: int,
        grid: BEVGrid,
        map_grid: BEVGrid,
        classes: Sequence[str] = MAP_CLASSES,
        channels: int = 64,
        gamma: float = 2.0,
        dice_weight: float = 0.0,
        reduce: bool = True,
        layers: int = 1,
    ):
        super().__init__()
        self.grid, self.map_grid, self.classes = grid, map_grid, tuple(classes)
        self.gamma, self.dice_weight = gamma, dice_weight
        self.reduce = ConvBlock(in_channels, channels) if reduce else nn.Identity()
        widths = [channels if reduce else in_channels] + [channels] * layers
        blocks = [ConvBlock(a, b) for a, b in pairwise(widths)]
        # Every cell starts at a probability of 0.1: layers cover little.
        last = output_conv(widths[-1], len(self.classes), -math.log(9.0))
        self.classifier = nn.Sequential(*blocks, last)
        for name, value in zip(("rows", "columns"), sampling_positions(grid, map_grid)):
            self.register_buffer(name, value, persistent=False)

    def forward(self, bev: Tensor) -> MapOutput:
        """(B, in_channels, X, Y) on the BEV grid to logits on the map grid."""
        # float32: bfloat16 has too few digits for positions.
        reduced = self.reduce(bev).float()
        return MapOutput(self.classifier(resample(reduced, self.rows, self.columns)))

    def loss(self, output: MapOutput, batch: Batch) -> dict[str, Tensor]:
        """Focal loss (mean over cells) and Dice loss, sums over classes, of samples with labels."""
        count = mean_over_processes(batch.map_valid.sum())
        if batch.map_masks is None:
            return {"focal": 0 * output.logits.sum() / count}
        if batch.map_masks.shape != output.logits.shape:
            raise ValueError(
                f"map labels are {tuple(batch.map_masks.shape)}, the map head predicts "
                f"{tuple(output.logits.shape)}; give the data the head's map_grid and classes"
            )
        loss = sigmoid_focal_loss(output.logits, batch.map_masks, self.gamma)
        per_sample = loss.mean((2, 3)).sum(1) * batch.map_valid
        terms = {"focal": per_sample.sum() / count}
        if self.dice_weight:
            dice = dice_loss(output.logits, batch.map_masks).sum(1) * batch.map_valid
            terms["dice"] = self.dice_weight * dice.sum() / count
        return terms

    @torch.no_grad()
    def decode(self, output: MapOutput, batch: Batch | None = None) -> Tensor:
        """(B, K, X, Y) probabilities, float32."""
        return output.logits.float().sigmoid()


def sampling_positions(grid: BEVGrid, map_grid: BEVGrid) -> tuple[Tensor, Tensor]:
    """Where the centres of the map cells lie on the BEV map, for ``grid_sample``.

    Returns:
        (X_map, 1) along x and (1, Y_map) along y, in [-1, 1] with align_corners False.
    """
    i = torch.arange(map_grid.shape[0], dtype=torch.float64) + 0.5
    j = torch.arange(map_grid.shape[1], dtype=torch.float64) + 0.5
    x, y = grid.to_cells(*map_grid.to_metres(i, j))
    x, y = 2 * x / grid.shape[0] - 1, 2 * y / grid.shape[1] - 1
    return x.float()[:, None], y.float()[None]


def resample(bev: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """(B, C, X, Y) at the places of :func:`sampling_positions`, zero beyond the border."""
    # grid_sample takes the position along the last axis of the map first.
    position = torch.stack(torch.broadcast_tensors(columns, rows), -1).float()
    position = position.expand(len(bev), -1, -1, -1)
    return F.grid_sample(bev, position, mode="bilinear", align_corners=False)
