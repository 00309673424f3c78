"""What TransFusion's queries should say, and what it costs when they do not."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ...datasets.batch import Batch
from ...kernels.grid import BEVGrid
from ..losses import gaussian_focal_loss, masked_l1, mean_over_processes, sigmoid_focal_loss
from .assignment import assign, matching_cost
from .box_proposals import proposal_loss
from .center_targets import PeakShape, draw_targets
from .query_boxes import wanted_of_boxes

if TYPE_CHECKING:
    from .transfusion import TransFusionOutput


@dataclass(frozen=True)
class TransFusionLoss:
    """Weights of TransFusion's losses and of its assignment; defaults of MIT BEVFusion.

    Args:
        class_weight: of the focal loss of the queries' classes.
        box_weight: of the L1 loss of the boxes of assigned queries.
        velocity_weight: of the velocity within the box losses.
        heatmap_weight: of the dense heat-map's loss.
        proposal_weight: of the L1 loss of the boxes that cells propose, for a head that refines.
        class_cost: of the class in the assignment.
        distance_cost: of the distance in the assignment.
        iou_cost: of the overlap in the assignment.
        peaks: how boxes are drawn on the heat-map.
    """

    class_weight: float = 1.0
    box_weight: float = 0.25
    velocity_weight: float = 0.2
    heatmap_weight: float = 1.0
    proposal_weight: float = 0.5
    class_cost: float = 0.15
    distance_cost: float = 0.25
    iou_cost: float = 0.25
    peaks: PeakShape = field(default_factory=PeakShape)

    def __call__(
        self, output: TransFusionOutput, boxes: Tensor, batch: Batch, grid: BEVGrid, top: bool
    ) -> dict[str, Tensor]:
        """Weighted loss terms.

        Samples without annotations (``box_valid``) count nothing; unknown velocities neither.

        Args:
            output: what the head predicted.
            boxes: (B, Q, 9) its boxes in the BEV frame.
            batch: the annotations.
            grid: the grid of the head's map.
            top: heights are those of the tops of boxes.
        """
        query, box = self._assign(output, boxes, batch, grid)
        sample = batch.boxes.sample[box]
        target = torch.zeros_like(output.logits)
        target[sample, batch.boxes.label[box], query] = 1
        focal = sigmoid_focal_loss(output.logits, target, alpha=0.25)
        count = mean_over_processes(torch.tensor(len(box), device=target.device))
        parts = (output.center, output.height, output.size, output.heading, output.velocity)
        predicted = torch.cat([part.float() for part in parts], 1)[sample, :, query]  # (T, 10)
        error = masked_l1(predicted, wanted_of_boxes(batch.boxes, grid, top)[box])
        total = error[:, :8].sum() + self.velocity_weight * error[:, 8:].sum()
        terms = {
            "class": self.class_weight * (focal * batch.box_valid.view(-1, 1, 1)).sum() / count,
            "box": self.box_weight * total / count,
        }
        return terms | self._dense_losses(output, batch, grid, top)

    def _dense_losses(
        self, output: TransFusionOutput, batch: Batch, grid: BEVGrid, top: bool
    ) -> dict[str, Tensor]:
        targets = draw_targets(batch, grid, output.heatmap.shape[1], self.peaks)
        focal = gaussian_focal_loss(output.heatmap, targets.heatmap)
        total = (focal * batch.box_valid.view(-1, 1, 1, 1)).sum()
        count = mean_over_processes((targets.heatmap == 1).sum())
        terms = {"heatmap": self.heatmap_weight * total / count}
        if output.proposals is not None:
            known = output.proposals, targets, batch, grid, top, self.velocity_weight
            count = mean_over_processes(targets.num_boxes)
            terms["proposal"] = self.proposal_weight * proposal_loss(*known) / count
        return terms

    @torch.no_grad()
    def _assign(
        self, output: TransFusionOutput, boxes: Tensor, batch: Batch, grid: BEVGrid
    ) -> tuple[Tensor, Tensor]:
        """Query and box (row of the batch's boxes) of all pairs, over all samples."""
        truth = batch.boxes
        columns = torch.cat([truth.center, truth.size, truth.yaw[:, None]], 1)
        on_grid = grid.flat_cell(truth.center[:, 0], truth.center[:, 1]) >= 0
        extent = (grid.x_range[1] - grid.x_range[0], grid.y_range[1] - grid.y_range[0])
        weights = self.class_cost, self.distance_cost, self.iou_cost
        queries, rows = [], []
        for b in range(batch.size):
            row = (on_grid & (truth.sample == b) & batch.box_valid[b]).nonzero()[:, 0]
            logits, label = output.logits[b].T, truth.label[row]
            cost = matching_cost(logits, boxes[b, :, :7], label, columns[row], extent, *weights)
            query, box = assign(cost)
            queries.append(query)
            rows.append(row[box])
        return torch.cat(queries), torch.cat(rows)
