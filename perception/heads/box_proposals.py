"""Boxes that the cells of a map propose, for object queries to start from."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...datasets.batch import Batch
from ...kernels.grid import BEVGrid
from ..losses import masked_l1
from .center_branches import joint_branch
from .center_targets import CenterTargets
from .query_boxes import PREDICTED, wanted_of_boxes


class BoxProposals(nn.Module):
    """A dense branch that says at every cell what a query there should predict.

    An object teaches it from all cells that its peak covers, where one-to-one assignment teaches
    one query: the quantities are those of queries, the centre counted from the cell's middle.

    Args:
        channels: of the map.
    """

    def __init__(self, channels: int):
        super().__init__()
        self.branch = joint_branch(channels, sum(PREDICTED.values()))

    def forward(self, shared: Tensor, motion: Tensor | None = None) -> Tensor:
        """(B, C, X, Y) to (B, 10, X, Y) center, height, size, heading, velocity.

        Args:
            shared: the map.
            motion: (B, 2, X, Y) is added to the velocity, m/s.
        """
        proposals = self.branch(shared)
        if motion is not None:  # to the last channels
            before = proposals.shape[1] - motion.shape[1]
            proposals = proposals + F.pad(motion, (0, 0, 0, 0, before, 0))
        return proposals


def proposal_loss(
    proposals: Tensor,
    targets: CenterTargets,
    batch: Batch,
    grid: BEVGrid,
    top: bool,
    velocity_weight: float,
) -> Tensor:
    """The sum over supervised cells of the L1 distance to their boxes.

    Args:
        proposals: (B, 10, X, Y).
        targets: which cells know which boxes, and how much a cell counts.
        batch: the annotations.
        grid: the grid of the map.
        top: heights are those of the tops of boxes.
        velocity_weight: of the velocity; unknown ones count nothing.
    """
    rows = proposals.flatten(2)[batch.boxes.sample[targets.box], :, targets.cell]  # (T, 10)
    wanted = wanted_of_boxes(batch.boxes, grid, top)[targets.box]
    wanted = torch.cat([targets.offset - 0.5, wanted[:, 2:]], 1)
    error = masked_l1(rows, wanted) * targets.weight[:, None]
    return error[:, :8].sum() + velocity_weight * error[:, 8:].sum()
