"""Detection by centre heat-maps."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import takewhile
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...datasets.batch import Batch
from ...datasets.boxes import Detections
from ...datasets.nuscenes.classes import ATTRIBUTES, DETECTION_CLASSES, attributes_of
from ...kernels.grid import BEVGrid
from ..decoding.centers import REGRESSION, CenterDecoder
from ..layers import ConvBlock
from ..losses import gaussian_focal_loss, masked_l1, mean_over_processes
from .center_branches import SeparateRegression, joint_branch, separate_branch
from .center_decode import decode_centers
from .center_targets import CenterTargets, PeakShape, draw_targets


@dataclass(frozen=True)
class CenterOutput:
    """Dense predictions for K classes in G class groups.

    The regression channels are, in this order: offset (2) of the box centre from the corner of
    the cell, in cells; height (1), z of the centre in metres; size (3), logarithm of length,
    width, height in metres; heading (2), sine and cosine of yaw; velocity (2), m/s; attribute,
    one logit each.
    """

    heatmap: Tensor  # (B, K, X, Y) logits
    regression: Tensor  # (B, G, R, X, Y)


class CenterHead(nn.Module):
    """Boxes as peaks of one heat-map per class (Yin et al., CenterPoint, CVPR 2021).

    Args:
        in_channels: channels of the BEV map.
        grid: the grid of the BEV map.
        classes: detection classes, in the order of the labels.
        class_groups: classes that share one regression branch, for instance [[car], [truck,
            bus]]; null puts all into one group.
        channels: width of the branches.
        peaks: how boxes are drawn on the heat-map, and from which cells they are regressed;
            null for the defaults.
        regression_weight: weight of the regression losses against the heat-map's.
        velocity_weight: weight of the velocity within the regression.
        attribute_weight: weight of the attribute within the regression.
        score_threshold: boxes with a lower score are not given.
        max_boxes: most boxes per sample.
        nms_scale: of two boxes of a class whose centres are nearer than this times their mean
            shorter side, only the better one is given; 0 turns that off.
        separate: a branch of two 3x3 convolutions for each quantity and no attributes, which are
            then told from class and speed: CenterPoint as MIT BEVFusion's camera-only model has it.
        height_of: whether the height is predicted of the middle or of the top of a box; "top" for
            published models, whose boxes stood half their height too high in training.
    """

    task = "detection"
    channel_of_class: Tensor  # (K,) where a class lies among the groups' heat-maps
    group_of_class: Tensor  # (K,)
    allowed: Tensor  # (K, A) bool, attributes a class may have

    def __init__(
        self,
        in_channels: int,
        grid: BEVGrid,
        classes: Sequence[str] = DETECTION_CLASSES,
        class_groups: Sequence[Sequence[str]] | None = None,
        channels: int = 64,
        peaks: PeakShape | None = None,
        regression_weight: float = 0.25,
        velocity_weight: float = 0.2,
        attribute_weight: float = 0.4,
        score_threshold: float = 0.03,
        max_boxes: int = 500,
        nms_scale: float = 1.0,
        separate: bool = False,
        height_of: Literal["middle", "top"] = "middle",
    ):
        super().__init__()
        groups = [list(g) for g in class_groups] if class_groups else [list(classes)]
        order = [name for group in groups for name in group]
        if sorted(order) != sorted(classes):
            raise ValueError(
                f"class_groups {groups} must name each of the classes {list(classes)} once"
            )
        self.grid, self.classes = grid, tuple(classes)
        self.peaks, self.regression_weight = peaks or PeakShape(), regression_weight
        self.relative_weight = {"velocity": velocity_weight, "attribute": attribute_weight}
        self.score_threshold, self.max_boxes = score_threshold, max_boxes
        self.nms_scale, self.top = nms_scale, height_of == "top"
        self.shared = ConvBlock(in_channels, channels)
        # Every cell starts at a score of 0.1 (Lin et al. 2017), or background drowns the rest.
        bias = -math.log(9.0)
        self.widths = {k: n for k, n in REGRESSION.items() if not (separate and k == "attribute")}
        branch = separate_branch if separate else joint_branch
        self.heatmap = nn.ModuleList(branch(channels, len(group), bias) for group in groups)
        self.regression = nn.ModuleList(
            SeparateRegression(channels, self.widths)
            if separate
            else joint_branch(channels, sum(self.widths.values()))
            for _ in groups
        )
        group_of = {name: g for g, group in enumerate(groups) for name in group}
        allowed = [[name in attributes_of(c) for name in ATTRIBUTES] for c in classes]
        for name, value in {
            "channel_of_class": torch.tensor([order.index(c) for c in classes]),
            "group_of_class": torch.tensor([group_of[c] for c in classes]),
            "allowed": torch.tensor(allowed),
        }.items():
            self.register_buffer(name, value, persistent=False)

    def forward(
        self, bev: Tensor, evidence: Tensor | None = None, motion: Tensor | None = None
    ) -> CenterOutput:
        """Predict on every cell of the map (B, in_channels, X, Y).

        Args:
            bev: the map.
            evidence: (B, K, X, Y) is added to the heat-map's logits.
            motion: (B, 2, X, Y) is added to the velocity, m/s.
        """
        shared = self.shared(bev)
        heatmap = torch.cat([branch(shared) for branch in self.heatmap], 1)
        if len(self.heatmap) > 1:
            heatmap = heatmap[:, self.channel_of_class]
        heatmap = heatmap if evidence is None else heatmap + evidence
        regression = torch.stack([branch(shared) for branch in self.regression], 1)
        if motion is not None:
            before = sum(self.widths[name] for name in takewhile("velocity".__ne__, self.widths))
            after = regression.shape[2] - before - motion.shape[1]
            regression = regression + F.pad(motion, (0, 0, 0, 0, before, after))[:, None]
        return CenterOutput(heatmap, regression)

    def loss(self, output: CenterOutput, batch: Batch) -> dict[str, Tensor]:
        """Weighted loss terms, their sum being the task's loss.

        All are divided by the number of boxes, on average over processes. Samples without
        annotations (``box_valid``) count nothing; unknown velocities and attributes neither.
        """
        targets = draw_targets(batch, self.grid, len(self.classes), self.peaks)
        count = mean_over_processes(targets.num_boxes)
        focal = gaussian_focal_loss(output.heatmap, targets.heatmap)
        terms = {"heatmap": (focal * batch.box_valid.view(-1, 1, 1, 1)).sum() / count}
        for name, total in self._regression_losses(output, targets, batch).items():
            weight = self.regression_weight * self.relative_weight.get(name, 1.0)
            terms[name] = weight * total / count
        return terms

    @torch.no_grad()
    def decode(self, output: CenterOutput, batch: Batch | None = None) -> list[Detections]:
        """Boxes of every sample in the BEV frame, best first."""
        return decode_centers(
            output.heatmap, output.regression, self.group_of_class, self.box_decoder
        )

    @property
    def box_decoder(self) -> CenterDecoder:
        """How peaks become boxes."""
        return CenterDecoder(
            *(self.grid, self.classes, tuple(self.group_of_class.tolist())),
            *(self.score_threshold, self.max_boxes, self.nms_scale, self.top),
        )

    def _regression_losses(
        self, output: CenterOutput, targets: CenterTargets, batch: Batch
    ) -> dict[str, Tensor]:
        """Sums over the supervised cells."""
        box = targets.box
        label = batch.boxes.label[box]
        maps = output.regression.flatten(3)  # (B, G, R, X * Y)
        group = self.group_of_class[label]
        rows = maps[batch.boxes.sample[box], group, :, targets.cell]  # (T, R)
        parts = rows.float().split(list(self.widths.values()), 1)
        predicted = dict(zip(self.widths, parts, strict=True))
        yaw, size = batch.boxes.yaw[box], batch.boxes.size[box]
        height = batch.boxes.center[box, 2:]
        wanted = {
            "offset": targets.offset,
            "height": height + size[:, 2:] / 2 if self.top else height,
            "size": size.clamp(min=1e-2).log(),
            "heading": torch.stack([yaw.sin(), yaw.cos()], 1),
            "velocity": batch.boxes.velocity[box],
        }
        losses = {
            name: (masked_l1(predicted[name], value).sum(1) * targets.weight).sum()
            for name, value in wanted.items()
        }
        if "attribute" not in predicted:
            return losses
        attribute = batch.boxes.attribute[box]
        losses["attribute"] = (
            self._attribute_loss(predicted["attribute"], attribute, label) * targets.weight
        ).sum()
        return losses

    def _attribute_loss(self, logits: Tensor, attribute: Tensor, label: Tensor) -> Tensor:
        """(T,) cross-entropy among the attributes that the class may have; 0 if none is known."""
        allowed = self.allowed[label]
        known = (attribute >= 0) & allowed.gather(1, attribute.clamp(min=0)[:, None])[:, 0]
        # Large and finite: a row of nothing but infinities has a NaN gradient even if unused.
        logits = logits.masked_fill(~allowed, -1e4)
        loss = F.cross_entropy(logits, attribute.clamp(min=0), reduction="none")
        return loss.where(known, 0)
