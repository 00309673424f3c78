"""Occupancy: a class for every voxel of a grid."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...datasets.batch import Batch, OccupancyTargets
from ...datasets.nuscenes.classes import FREE, OCCUPANCY_CLASSES
from ...kernels.grid import BEVGrid
from ...kernels.voxel_grid import VoxelGrid
from ..layers import ConvBlock, output_conv
from ..losses import lovasz_loss, lovasz_softmax_loss, mean_over_processes, sigmoid_focal_loss
from .map import resample, sampling_positions


@dataclass(frozen=True)
class OccupancyOutput:
    """Is a voxel occupied, and by what if so? S voxels along x and y share a class prediction.

    As convolutions over columns give it: what reads it once, such as a decoder, need not copy it.
    """

    occupied: Tensor  # (B, Z, S, S, X / S, Y / S) logits; of x: x % S comes before x // S
    classes: Tensor  # (B, Z, K, X / S, Y / S) logits, free not among them

    def by_voxel(self) -> tuple[Tensor, Tensor]:
        """Copies by place: (B, X, Y, Z) on the occupancy grid and (B, X / S, Y / S, Z, K)."""
        batch, nz, s, _, nx, ny = self.occupied.shape
        occupied = self.occupied.permute(0, 4, 2, 5, 3, 1).reshape(batch, nx * s, ny * s, nz)
        return occupied, self.classes.permute(0, 3, 4, 1, 2).contiguous()


@dataclass(frozen=True)
class OccupancyVolume:
    """Decoded occupancy of B samples."""

    semantics: Tensor  # (B, X, Y, Z) uint8 index into OCCUPANCY_CLASSES, FREE where nothing is
    probability: Tensor  # (B, X, Y, Z) float32 of what `semantics` says
    grid: VoxelGrid  # in the BEV frame


class OccupancyHead(nn.Module):
    """Voxels from the BEV map, whose channels become height (Yu et al., FlashOcc, 2023).

    Occupancy and class are told apart: a logit per voxel says whether something is there, a
    softmax what it is, and p(class) = p(occupied) p(class | occupied). Occupancy needs the fine
    grid, classes do not, and most voxels need no class: this is what makes the head cheap.

    Args:
        in_channels: channels of the BEV map.
        grid: the grid of the BEV map.
        occupancy_grid: the grid to predict on, in the BEV frame.
        channels: width of the 2-D convolutions.
        class_stride: S, voxels along x and y that share a class prediction.
        layers: 3x3 convolutions in 2-D.
        refine_layers: residual 3x3x3 convolutions in 3-D after them; 0 for none.
        refine_channels: width of those.
        mask: which voxels count in the loss: seen by a camera, by the LiDAR, or all.
        hidden_weight: weight of the other voxels, of labels that hold for them too.
        gamma: exponent of the focal loss.
        class_weights: by class name, of voxels of that class; 1 for those not named.
        lovasz_weight: weight of the Lovász losses, which ask for IoU.
        threshold: a voxel at least this likely to be occupied is, when decoded.
    """

    task = "occupancy"
    rows: Tensor  # (X / S, 1) see sampling_positions
    columns: Tensor  # (1, Y / S)
    class_weight: Tensor  # (K + 1,)

    def __init__(
        self,
        in_channels: int,
        grid: BEVGrid,
        occupancy_grid: VoxelGrid,
        channels: int = 64,
        class_stride: int = 1,
        layers: int = 1,
        refine_layers: int = 0,
        refine_channels: int = 16,
        mask: Literal["camera", "lidar", "none"] = "camera",
        hidden_weight: float = 0.0,
        gamma: float = 2.0,
        class_weights: dict[str, float] | None = None,
        lovasz_weight: float = 1.0,
        threshold: float = 0.5,
    ):
        super().__init__()
        if mask not in ("camera", "lidar", "none"):
            raise ValueError(f"mask is {mask!r}; give camera, lidar or none")
        self.occupancy_grid, self.class_stride = occupancy_grid, class_stride
        self.mask, self.hidden_weight = mask, hidden_weight
        self.gamma, self.lovasz_weight, self.threshold = gamma, lovasz_weight, threshold
        columns = occupancy_grid.bev.coarser(class_stride)
        self.crop = _crop(grid, columns)
        for name, value in zip(("rows", "columns"), sampling_positions(grid, columns)):
            self.register_buffer(name, value, persistent=False)
        weights = _weights_of(class_weights or {}, OCCUPANCY_CLASSES)
        self.register_buffer("class_weight", weights, persistent=False)
        # Narrowed by a 1x1 convolution: the BEV map is wide, and its own layers have looked around.
        blocks = [ConvBlock(in_channels, channels, 1)]
        blocks += [ConvBlock(channels, channels) for _ in range(layers)]
        self.trunk = nn.Sequential(*blocks)
        height, num_classes = occupancy_grid.shape[2], len(OCCUPANCY_CLASSES)
        self.refine = nn.ModuleList(_block_3d(refine_channels) for _ in range(refine_layers))
        # Channels to height: (Z, per voxel) in the last axis of a channels-last map.
        self.lift = output_conv(channels, height * refine_channels) if refine_layers else None
        wide = refine_channels if refine_layers else channels
        repeat = 1 if refine_layers else height
        # Every voxel starts at a probability of 0.1: most are free.
        self.occupied = output_conv(wide, repeat * class_stride**2, -math.log(9.0))
        self.classes = output_conv(wide, repeat * num_classes)

    def forward(self, bev: Tensor) -> OccupancyOutput:
        """(B, in_channels, X, Y) on the BEV grid to logits on the occupancy grid."""
        columns = self.trunk(self._resampled(bev))
        batch, _, nx, ny = columns.shape
        nz, s = self.occupancy_grid.shape[2], self.class_stride
        if self.lift is None:
            occupied = self.occupied(columns).view(batch, nz, s, s, nx, ny)
            return OccupancyOutput(occupied, self.classes(columns).view(batch, nz, -1, nx, ny))
        volume = self._refined(self.lift(columns))
        occupied = self.occupied(volume).view(batch, s, s, nx, ny, nz).permute(0, 5, 1, 2, 3, 4)
        classes = self.classes(volume).view(batch, -1, nx, ny, nz).permute(0, 4, 1, 2, 3)
        return OccupancyOutput(occupied.contiguous(), classes.contiguous())

    def _refined(self, lifted: Tensor) -> Tensor:
        """(B, Z * C, X / S, Y / S) to (B, C, X / S, Y / S * Z), after the 3-D convolutions."""
        batch, _, nx, ny = lifted.shape
        volume = lifted.view(batch, self.occupancy_grid.shape[2], -1, nx, ny)
        volume = volume.permute(0, 2, 3, 4, 1)  # (B, C, X / S, Y / S, Z)
        for block in self.refine:
            volume = F.relu(volume + block(volume))
        return volume.flatten(3)

    def _resampled(self, bev: Tensor) -> Tensor:
        if self.crop is not None:
            return bev[:, :, self.crop[0], self.crop[1]]
        # float32: bfloat16 has too few digits for positions.
        return resample(bev.float(), self.rows, self.columns)

    def loss(self, output: OccupancyOutput, batch: Batch) -> dict[str, Tensor]:
        """Focal loss of occupancy, cross-entropy of the classes, Lovász losses of both.

        Means over the voxels that count, of samples with labels.
        """
        labels = batch.occupancy
        if labels is None:
            nothing = 0 * (output.occupied.sum() + output.classes.sum())
            for _ in ("focal", "class"):  # other processes count what they have
                mean_over_processes(nothing)
            return {"focal": nothing, "class": nothing, "lovasz": nothing}
        logits_occupied, logits_classes = output.by_voxel()
        if labels.semantics.shape != logits_occupied.shape:
            raise ValueError(
                f"occupancy labels are {tuple(labels.semantics.shape)}, the occupancy head "
                f"predicts {tuple(logits_occupied.shape)}; give the data the head's occupancy_grid"
            )
        voxel, weight = self._counted(labels)
        target = labels.semantics.flatten()[voxel].long()
        there = target != FREE
        weight = weight * self.class_weight[target]
        logit = logits_occupied.flatten().index_select(0, voxel)
        focal = (sigmoid_focal_loss(logit, there, self.gamma) * weight).sum()
        occupied = there.nonzero()[:, 0]
        row = self._class_voxel(voxel[occupied])
        logits = logits_classes.flatten(0, 3).index_select(0, row).float()
        label, weight = target[occupied], weight[occupied]
        cross_entropy = (F.cross_entropy(logits, label, reduction="none") * weight).sum()
        overlap = lovasz_loss(logit.float().sigmoid(), there)
        overlap = overlap + lovasz_softmax_loss(logits.softmax(1), label)
        return {
            "focal": focal / mean_over_processes(torch.tensor(len(voxel), device=logit.device)),
            "class": cross_entropy / mean_over_processes(weight.sum()),
            "lovasz": self.lovasz_weight * overlap,
        }

    def _counted(self, labels: OccupancyTargets) -> tuple[Tensor, Tensor]:
        """Flat indices (V,) of the voxels that count, and the weight of each."""
        valid = labels.valid.view(-1, 1, 1, 1)
        if self.mask == "none":
            seen = valid.expand_as(labels.semantics)
        else:
            seen = (labels.mask_camera if self.mask == "camera" else labels.mask_lidar) & valid
        counted = valid.expand_as(seen) if self.hidden_weight else seen
        voxel = counted.flatten().nonzero()[:, 0]
        weight = torch.where(seen.flatten()[voxel], 1.0, self.hidden_weight)
        return voxel, weight

    def _class_voxel(self, voxel: Tensor) -> Tensor:
        """Flat indices on the class grid of flat indices on the occupancy grid."""
        _, ny, nz = self.occupancy_grid.shape
        s = self.class_stride
        z, column = voxel % nz, voxel // nz
        y, row = column % ny, column // ny  # row: over samples and x; X is a multiple of S
        return ((row // s) * (ny // s) + y // s) * nz + z

    @torch.no_grad()
    def decode(self, output: OccupancyOutput, batch: Batch | None = None) -> OccupancyVolume:
        """The class of every voxel, and how likely it is."""
        s = self.class_stride
        occupied, classes = (logits.float() for logits in output.by_voxel())
        occupied = occupied.sigmoid()
        best, label = classes.softmax(-1).max(-1)
        best, label = (t.repeat_interleave(s, 1).repeat_interleave(s, 2) for t in (best, label))
        there = occupied >= self.threshold
        return OccupancyVolume(
            torch.where(there, label, FREE).to(torch.uint8),
            torch.where(there, occupied * best, 1 - occupied),
            self.occupancy_grid,
        )


def _block_3d(channels: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv3d(channels, channels, 3, padding=1, bias=False), nn.BatchNorm3d(channels)
    )


def _weights_of(given: dict[str, float], classes: Sequence[str]) -> Tensor:
    """(K + 1,): the weight of every class, and of free."""
    if unknown := set(given) - {*classes, "free"}:
        raise ValueError(
            f"class_weights names {sorted(unknown)}; the classes are {[*classes, 'free']}"
        )
    return torch.tensor([given.get(name, 1.0) for name in (*classes, "free")])


def _crop(grid: BEVGrid, columns: BEVGrid) -> tuple[slice, slice] | None:
    """The part of a BEV map that is ``columns``, where its cells are cells of the map."""
    if abs(grid.cell_size - columns.cell_size) > 1e-6:
        return None
    start = grid.to_cells(columns.x_range[0], columns.y_range[0])
    first = tuple(round(s) for s in start)
    whole = all(abs(s - f) < 1e-3 for s, f in zip(start, first))
    inside = all(0 <= f <= n - m for f, n, m in zip(first, grid.shape, columns.shape))
    if not (whole and inside):
        return None
    x, y = (slice(f, f + m) for f, m in zip(first, columns.shape))
    return x, y
