"""From object queries to boxes, and back to what a query should say."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from ...datasets.batch import BoxTargets
from ...kernels.grid import BEVGrid

if TYPE_CHECKING:
    from .transfusion import TransFusionOutput

# What is predicted for a query, and with how many channels; see TransFusionOutput.
PREDICTED = {"center": 2, "height": 1, "size": 3, "heading": 2, "velocity": 2}


def local_maxima(score: Tensor, single_cell: Tensor, border: bool) -> Tensor:
    """The heat-map, zero where a neighbour of the same class is higher.

    Args:
        score: (B, K, X, Y) probabilities.
        single_cell: (K,) bool, classes of which every cell stays.
        border: whether cells at the border of the map may stay; those of ``single_cell`` do.
    """
    if border:
        highest = F.max_pool2d(score, 3, stride=1, padding=1)
    else:
        highest = F.pad(F.max_pool2d(score, 3, stride=1), (1, 1, 1, 1))
    kept = (score == highest) | single_cell.view(-1, 1, 1)
    return score * kept


def query_box_columns(output: TransFusionOutput, grid: BEVGrid, top: bool) -> Tensor:
    """(B, Q, 9) float32 x, y, z of the middle, length, width, height, yaw, vx, vy.

    Args:
        output: what the head predicted.
        grid: the grid of its map.
        top: the height was predicted of the box's top, not of its middle.
    """
    center, heading = output.center.float(), output.heading.float()
    x, y = grid.to_metres(center[:, 0], center[:, 1])
    # Bounded, so that an untrained network gives no infinite box: 5 cm to 55 m.
    size = output.size.float().clamp(-3, 4).exp()
    z = output.height.float()[:, 0] - (size[:, 2] / 2 if top else 0)
    yaw = torch.atan2(heading[:, 0], heading[:, 1])
    columns = [torch.stack([x, y, z], 1), size, yaw[:, None], output.velocity.float()]
    return torch.cat(columns, 1).mT


def wanted_of_boxes(boxes: BoxTargets, grid: BEVGrid, top: bool) -> Tensor:
    """(M, 10) what a query should predict for each box: center, height, size, heading, velocity.

    The inverse of :func:`query_box_columns`; NaN where a velocity is unknown.
    """
    x, y = grid.to_cells(boxes.center[:, 0], boxes.center[:, 1])
    height = boxes.center[:, 2] + (boxes.size[:, 2] / 2 if top else 0)
    size = boxes.size.clamp(min=1e-2).log()
    heading = torch.stack([boxes.yaw.sin(), boxes.yaw.cos()], 1)
    return torch.cat([torch.stack([x, y, height], 1), size, heading, boxes.velocity], 1)
