"""Detection by object queries that start at the peaks of a heat-map."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...datasets.batch import Batch
from ...datasets.boxes import Detections
from ...datasets.nuscenes.classes import DETECTION_CLASSES
from ...kernels.grid import BEVGrid
from ..decoding.queries import QueryDecoder
from ..layers import ConvBlock, start_as_mmcv
from .box_proposals import BoxProposals
from .query_boxes import PREDICTED, local_maxima, query_box_columns
from .query_decoder import QueryDecoderLayer
from .transfusion_loss import TransFusionLoss


@dataclass(frozen=True)
class TransFusionOutput:
    """Predictions for Q queries and the dense heat-map they were taken from."""

    heatmap: Tensor  # (B, K, X, Y) logits
    label: Tensor  # (B, Q) class that a query was started for
    peak: Tensor  # (B, Q) probability of that class at the query's cell
    logits: Tensor  # (B, K, Q) class logits of the refined queries
    center: Tensor  # (B, 2, Q) in cells; i + 0.5 is the middle of cell i
    height: Tensor  # (B, 1, Q) metres, of the middle or the top of the box (``height_of``)
    size: Tensor  # (B, 3, Q) logarithm of length, width, height in metres
    heading: Tensor  # (B, 2, Q) sine and cosine of yaw
    velocity: Tensor  # (B, 2, Q) m/s
    proposals: Tensor | None = None  # (B, 10, X, Y) what cells propose, where queries refine it


class TransFusionHead(nn.Module):
    """TransFusion (Bai et al., CVPR 2022), as MIT BEVFusion uses it on the fused map.

    The best peaks of a class heat-map become queries, which one decoder layer refines against all
    cells of the map. A score is the refined class probability times that of the peak; there is no
    non-maximum suppression.

    Args:
        in_channels: channels of the BEV map.
        grid: the grid of the BEV map.
        classes: detection classes, in the order of the labels.
        channels: width of queries and map.
        num_queries: queries per sample.
        num_heads: attention heads.
        ffn_channels: hidden width of the feed-forward net.
        branch_channels: hidden width of the prediction branches.
        dropout: in training.
        single_cell_classes: classes so small that every cell is a peak of its own.
        border_peaks: whether a cell at the border of the map can be a peak. False for published
            models, whose maximum was taken over whole windows only.
        height_of: whether the height is predicted of the middle or of the top of a box. "top" for
            published models, whose boxes stood half their height too high in training.
        center_range: x0, y0, z0, x1, y1, z1; boxes whose centre is outside are not given; null
            keeps all.
        score_threshold: boxes with a lower score are not given.
        nms_scale: of two boxes of a class whose centres are nearer than this times their mean
            shorter side, only the better one is given. 0, as published, turns that off: long
            trainings teach queries to leave an object to one of them, short ones do not.
        prior: the probability that every class starts with, on the heat-map and of the queries;
            null leaves the layers' own start, as in published training.
        refine: queries start from the class logits of the heat-map at their cell and from the box
            that a dense branch proposes there, and predict the difference (as the two stages of
            Deformable DETR do, Zhu et al., ICLR 2021). False, as published: from features alone,
            which takes long, since one query of each object learns and not all its cells.
        loss: how predictions are assigned to boxes and compared.
    """

    task = "detection"
    cell_centers: Tensor  # (1, X * Y, 2)
    single_cell: Tensor  # (K,) bool

    def __init__(
        self,
        in_channels: int,
        grid: BEVGrid,
        classes: Sequence[str] = DETECTION_CLASSES,
        channels: int = 128,
        num_queries: int = 200,
        num_heads: int = 8,
        ffn_channels: int = 256,
        branch_channels: int = 64,
        dropout: float = 0.1,
        single_cell_classes: Sequence[str] = ("pedestrian", "traffic_cone"),
        border_peaks: bool = True,
        height_of: Literal["middle", "top"] = "middle",
        center_range: tuple[float, float, float, float, float, float] | None = None,
        score_threshold: float = 0.0,
        nms_scale: float = 0.0,
        prior: float | None = 0.1,
        refine: bool = False,
        loss: TransFusionLoss | None = None,
    ):
        super().__init__()
        if unknown := set(single_cell_classes) - set(classes):
            raise ValueError(f"single_cell_classes names {sorted(unknown)}, which are no classes")
        self.grid, self.classes, self.num_queries = grid, tuple(classes), num_queries
        self.border_peaks, self.height_of = border_peaks, height_of
        self.center_range, self.score_threshold = center_range, score_threshold
        self.nms_scale = nms_scale
        self.targets = loss or TransFusionLoss()
        num_classes = len(self.classes)
        self.shared = nn.Conv2d(in_channels, channels, 3, padding=1)
        last = nn.Conv2d(channels, num_classes, 3, padding=1)
        self.heatmap = nn.Sequential(ConvBlock(channels, channels), last)
        start_as_mmcv(self.heatmap)
        self.class_embedding = nn.Conv1d(num_classes, channels, 1)
        self.decoder = QueryDecoderLayer(channels, num_heads, ffn_channels, dropout)
        widths = {**PREDICTED, "logits": num_classes}
        self.prediction = nn.ModuleDict(
            {name: _branch(channels, branch_channels, width) for name, width in widths.items()}
        )
        if prior is not None:  # or background drowns the rest (Lin et al. 2017)
            start = math.log(prior / (1 - prior))
            for layer in (last, [*self.prediction["logits"].children()][-1]):
                nn.init.constant_(layer.get_parameter("bias"), start)
        self.proposals = BoxProposals(channels) if refine else None
        if refine:  # at first without a difference
            for branch in self.prediction.values():
                for parameter in [*branch.children()][-1].parameters():
                    nn.init.zeros_(parameter)
        single = torch.tensor([name in single_cell_classes for name in self.classes])
        self.register_buffer("single_cell", single, persistent=False)
        self.register_buffer("cell_centers", _cell_centers(grid), persistent=False)

    def forward(
        self, bev: Tensor, evidence: Tensor | None = None, motion: Tensor | None = None
    ) -> TransFusionOutput:
        """Predict from the map (B, in_channels, X, Y).

        Args:
            bev: the map.
            evidence: (B, K, X, Y) is added to the heat-map's logits, before queries are chosen.
            motion: (B, 2, X, Y) is added to the velocity of the query at a cell, m/s.
        """
        shared = self.shared(bev)
        heatmap = self.heatmap(shared)
        heatmap = heatmap if evidence is None else heatmap + evidence
        peaks = local_maxima(
            heatmap.detach().float().sigmoid(), self.single_cell, self.border_peaks
        )
        num_cells = peaks.shape[2] * peaks.shape[3]
        best = peaks.flatten(1).topk(min(self.num_queries, peaks[0].numel()), dim=1)
        label, cell = best.indices // num_cells, best.indices % num_cells
        cells = shared.flatten(2).transpose(-1, -2)  # (B, X * Y, C)
        query = cells.gather(1, cell[..., None].expand(-1, -1, cells.shape[2]))
        one_hot = F.one_hot(label, len(self.classes)).transpose(-1, -2).to(query.dtype)
        query = query + self.class_embedding(one_hot).transpose(-1, -2)
        position = self.cell_centers[0, cell]
        query = self.decoder(query, cells, position, self.cell_centers)
        predicted = {
            name: branch(query.transpose(-1, -2)) for name, branch in self.prediction.items()
        }
        proposals = None
        if self.proposals is not None:
            proposals = self.proposals(shared, motion)
            starts = [*_at(proposals, cell).split([*PREDICTED.values()], 1), _at(heatmap, cell)]
            for name, start in zip((*PREDICTED, "logits"), starts, strict=True):
                predicted[name] = predicted[name] + start
        elif motion is not None:
            at_query = motion.flatten(2).gather(2, cell[:, None].expand(-1, 2, -1))
            predicted["velocity"] = predicted["velocity"] + at_query
        predicted["center"] = predicted["center"].float() + position.transpose(-1, -2)
        return TransFusionOutput(heatmap, label, best.values, **predicted, proposals=proposals)

    def boxes(self, output: TransFusionOutput) -> Tensor:
        """(B, Q, 9) x, y, z of the middle, length, width, height, yaw, vx, vy in the BEV frame."""
        return query_box_columns(output, self.grid, top=self.height_of == "top")

    def loss(self, output: TransFusionOutput, batch: Batch) -> dict[str, Tensor]:
        """Weighted loss terms, their sum being the task's loss."""
        return self.targets(output, self.boxes(output), batch, self.grid, self.height_of == "top")

    @torch.no_grad()
    def decode(self, output: TransFusionOutput, batch: Batch | None = None) -> list[Detections]:
        """Boxes of every sample in the BEV frame, best first."""
        names = ("label", "peak", "logits", *PREDICTED)
        columns = (getattr(output, name).detach().cpu() for name in names)
        arrays = (t.float().numpy() if t.is_floating_point() else t.numpy() for t in columns)
        return [self.box_decoder(*of_sample) for of_sample in zip(*arrays, strict=True)]

    @property
    def box_decoder(self) -> QueryDecoder:
        """How queries become boxes."""
        top, center_range = self.height_of == "top", self.center_range
        return QueryDecoder(
            *(self.grid, self.classes, top, self.score_threshold, center_range, self.nms_scale)
        )


def _at(dense: Tensor, cell: Tensor) -> Tensor:
    """Values of a map (B, C, X, Y) at flat cells (B, Q), (B, C, Q), without its gradient.

    What a query starts from has a loss of its own.
    """
    return dense.detach().flatten(2).gather(2, cell[:, None].expand(-1, dense.shape[1], -1))


def _branch(channels: int, hidden: int, out_channels: int) -> nn.Sequential:
    branch = nn.Sequential(
        nn.Conv1d(channels, hidden, 1, bias=False),
        nn.BatchNorm1d(hidden),
        nn.ReLU(inplace=True),
        nn.Conv1d(hidden, out_channels, 1),
    )
    start_as_mmcv(branch)
    return branch


def _cell_centers(grid: BEVGrid) -> Tensor:
    """(1, X * Y, 2) cell coordinates of the middles of all cells, x the slower."""
    i, j = torch.meshgrid(*(torch.arange(n) + 0.5 for n in grid.shape), indexing="ij")
    return torch.stack([i, j], -1).view(1, -1, 2)
