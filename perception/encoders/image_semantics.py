"""Perspective supervision: image features learn what they show before any BEV loss reaches them.

LiDAR tells how far a pixel looks, so the boxes and the map, given in the BEV frame, say what it
sees: labels that cost nothing. BEVFormer v2 (Yang et al., CVPR 2023) found that image backbones
need such a loss of their own; its labels are boxes projected into the image.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from ...datasets.batch import Batch, BoxTargets
from ...datasets.nuscenes.classes import DETECTION_CLASSES, MAP_CLASSES
from ...kernels.grid import BEVGrid
from ...kernels.points_in_boxes import points_in_boxes
from ..layers import full_precision, output_conv
from ..losses import mean_over_processes, sigmoid_focal_loss, sum_over_processes

# A feature pixel's centre is up to half a pixel beside the LiDAR return: metres on every side.
BOX_MARGIN = 0.2
# Above this height in the BEV frame, whose zero is under the wheels, a return is not the ground.
GROUND_HEIGHT = 0.4
# Samples are searched in one call, stacked at this distance, metres.
STOREY = 1e4


class ImageSemantics(nn.Module):
    """Predicts detection classes and map layers of image pixels.

    Args:
        in_channels: channels of the image features.
        map_grid: the grid of the map labels; null teaches boxes only.
        weight: weight of the loss.
        paint: also lift the probabilities into the BEV map, as PointPainting (Vora et al., CVPR
            2020) gives them to points: what a pixel shows then needs no further learning. If
            false, the predictions serve in training only.
        balanced: let the pixels of a class that fills few of them count more, by the root of how
            few: a bus has a hundred times a cyclist's.
    """

    def __init__(
        self,
        in_channels: int,
        map_grid: BEVGrid | None = None,
        weight: float = 1.0,
        paint: bool = False,
        balanced: bool = False,
    ):
        super().__init__()
        self.map_grid, self.weight, self.paint = map_grid, weight, paint
        self.balanced = balanced
        self.num_classes = len(DETECTION_CLASSES) + (len(MAP_CLASSES) if map_grid else 0)
        self.classify = output_conv(in_channels, self.num_classes, -math.log(9.0))

    def forward(self, features: Tensor) -> Tensor:
        """(N, C_in, H, W) to logits (N, K, H, W)."""
        return self.classify(features)

    def loss(
        self, logits: Tensor, depth: Tensor, bev_from_image: Tensor, sample: Tensor, batch: Batch
    ) -> Tensor:
        """Focal loss summed over classes, mean over the pixels with a LiDAR return.

        Args:
            logits: (N, K, H, W) of the images that the model saw.
            depth: (N, H, W) metres along the optical axis, infinite where unknown.
            bev_from_image: (N, 4, 4) of these pixels.
            sample: (N,) which sample an image belongs to.
            batch: gives boxes and map masks.
        """
        position, pixel_sample, known = seen_positions(depth, bev_from_image, sample)
        in_box = labels_of_boxes(position, pixel_sample, batch.boxes)
        targets, valid = [in_box], [batch.box_valid[pixel_sample, None].expand_as(in_box)]
        if self.map_grid is not None and batch.map_masks is not None:
            ground = (position[:, 2] < GROUND_HEIGHT) & ~in_box.any(1)
            targets.append(
                labels_of_map(position, pixel_sample, batch.map_masks, self.map_grid, ground)
            )
            valid.append(batch.map_valid[pixel_sample, None].expand_as(targets[1]))
        elif self.map_grid is not None:
            logits = logits[:, : len(DETECTION_CLASSES)]
        rows = logits.movedim(1, -1)[known]  # (Q, K)
        loss = sigmoid_focal_loss(rows, torch.cat(targets, 1)) * torch.cat(valid, 1)
        if self.balanced:
            loss = loss * class_balance(in_box)[:, None]
        return self.weight * loss.sum() / mean_over_processes(known.sum())


def class_balance(in_box: Tensor) -> Tensor:
    """(Q,) weights of pixels with classes (Q, K): roots of a class's mean size over its own.

    1 for pixels of no class, and for all where the classes are of one size. Sizes are those in the
    batch, of all processes together.
    """
    count = sum_over_processes(in_box.sum(0))
    mean = count.sum() / (count > 0).sum().clamp(min=1)
    weight = (mean / count.clamp(min=1)).sqrt()  # (K,)
    return torch.where(in_box.any(1), (in_box * weight).sum(1), 1.0)


def seen_positions(
    depth: Tensor, bev_from_image: Tensor, sample: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Where the pixels with a known depth look.

    Returns:
        positions (Q, 3) in the BEV frame, sample (Q,) of each, and the mask (N, H, W) of them.
    """
    known = depth.isfinite()
    image, row, column = known.nonzero(as_tuple=True)
    d = depth[known]
    with full_precision(depth):
        ray = torch.stack([column * d, row * d, d, torch.ones_like(d)], 1)
        position = torch.einsum("qij,qj->qi", bev_from_image[image, :3].float(), ray)
    return position, sample[image], known


def labels_of_boxes(position: Tensor, sample: Tensor, boxes: BoxTargets) -> Tensor:
    """(Q, K) bool: is the position inside a box of that class, in its sample?"""
    size = boxes.size + 2 * BOX_MARGIN
    columns = torch.cat([boxes.center, size, boxes.yaw[:, None]], 1).double()
    columns[:, 2] += STOREY * boxes.sample
    stacked = position.double()
    stacked[:, 2] += STOREY * sample
    box = points_in_boxes(stacked, columns)
    # Row -1, for points in no box, is the one appended.
    label = torch.cat([boxes.label, boxes.label.new_tensor([-1])])[box]
    return label[:, None] == torch.arange(len(DETECTION_CLASSES), device=label.device)


def labels_of_map(
    position: Tensor, sample: Tensor, masks: Tensor, grid: BEVGrid, ground: Tensor
) -> Tensor:
    """(Q, K) bool: the map layers under the positions; none off the grid or above the ground."""
    cell = grid.flat_cell(position[:, 0], position[:, 1])
    layers = masks.flatten(2).movedim(1, -1)[sample, cell.clamp(min=0)]
    return layers & ((cell >= 0) & ground)[:, None]
