"""The camera branch: images to a BEV map."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ...datasets.batch import Batch
from ...datasets.nuscenes.classes import DETECTION_CLASSES
from ...kernels.grid import BEVGrid
from ..layers import absent_map, full_precision, zero_where_absent
from .depth_lss import LSS, DepthLSS
from .fpn import FPN, LSSFPN
from .frustum import DepthOutput
from .image_backbone import ImageBackbone
from .image_semantics import ImageSemantics
from .lidar_depth import nearest_depth
from .lift_splat import LiftSplat

IMAGENET_MEAN = (123.675, 116.28, 103.53)  # RGB, 0..255
IMAGENET_STD = (58.395, 57.12, 57.375)


@dataclass(frozen=True)
class CameraOutput:
    """What the camera branch predicts beside its map; losses read it."""

    depth: DepthOutput
    semantics: Tensor | None  # (N, K, H, W) logits; None where nothing needs them


class CameraEncoder(nn.Module):
    """Any number of cameras to one BEV map: backbone, feature pyramid, lift-splat.

    Args:
        grid: the BEV grid to fill.
        backbone: image network.
        fpn: feature pyramid, made from the channels of the backbone's maps.
        lift: view transform, made from the pyramid's channels and the grid.
        depth_loss_weight: weight of the cross-entropy between predicted depth and LiDAR's; the
            points are needed in training only. 0 turns it off.
        semantics: perspective supervision, made from the pyramid's channels; null for none.
            If it paints, the lift must be a LiftSplat.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        grid: BEVGrid,
        backbone: ImageBackbone,
        fpn: Callable[[Sequence[int]], FPN | LSSFPN],
        lift: Callable[[int, BEVGrid], LiftSplat | LSS | DepthLSS],
        depth_loss_weight: float = 0.0,
        semantics: Callable[[int], ImageSemantics] | None = None,
    ):
        super().__init__()
        self.grid = grid
        self.backbone = backbone
        self.fpn = fpn(backbone.out_channels)
        self.lift = lift(self.fpn.out_channels, grid)
        self.depth_loss_weight = depth_loss_weight
        self.semantics = semantics(self.fpn.out_channels) if semantics is not None else None
        self.out_channels = self.lift.out_channels
        self.paints = self.semantics is not None and self.semantics.paint
        if self.semantics is not None and self.paints:
            if not isinstance(self.lift, LiftSplat):
                raise ValueError(
                    f"camera.semantics paints, which {type(self.lift).__name__} cannot lift; use "
                    "LiftSplat, or set paint: false"
                )
            self.out_channels += self.semantics.num_classes
        self.register_buffer("mean", torch.tensor(IMAGENET_MEAN).view(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(IMAGENET_STD).view(3, 1, 1), persistent=False)

    def forward(self, batch: Batch) -> tuple[Tensor, CameraOutput | None]:
        """Encode the images of a batch.

        Returns:
            (B, out_channels, *grid.shape), zero for a sample without images, and what the losses
            need, None where the batch has no image at all.
        """
        if len(batch.images) == 0:
            return absent_map(self, batch.size, (self.out_channels, *self.grid.shape)), None
        images = (batch.images.float() - self.mean) / self.std
        features = self.fpn(self.backbone(images))
        with full_precision(batch.images):
            image_from_feature = self.lift.image_from_feature(
                self.backbone.strides[0], features.shape[-2:]
            )
            # float64: whoever multiplies, the product is the same once it is rounded.
            image_from_feature = image_from_feature.to(batch.images.device).double()
            bev_from_feature = (batch.bev_from_image.double() @ image_from_feature).float()
        semantics = None
        if self.semantics is not None and (self.training or self.paints):
            semantics = self.semantics(features)
        paint = {"painted": semantics.sigmoid()} if self.paints and semantics is not None else {}
        bev, depth = self.lift(
            features,
            bev_from_feature,
            batch.image_sample,
            batch.size,
            batch.points,
            batch.point_sample,
            **paint,
        )
        return zero_where_absent(bev, batch.image_sample), CameraOutput(depth, semantics)

    def painted_classes(self, bev: Tensor) -> Tensor:
        """The probabilities (B, 10, X, Y) of the detection classes in a map that was painted."""
        assert self.semantics is not None
        first = self.out_channels - self.semantics.num_classes  # painted last, classes first
        return bev[:, first : first + len(DETECTION_CLASSES)]

    def loss(self, output: CameraOutput | None, batch: Batch) -> dict[str, Tensor]:
        """The weighted losses of depth and semantics, of those that are turned on.

        LiDAR is the teacher, of a model without LiDAR too. Without an image (None) they are zero;
        processes that train together must all count what they have to teach.
        """
        output = output or self._nothing_seen(batch)
        if not self.depth_loss_weight and output.semantics is None:
            return {}
        seen = output.depth
        calibration, size = (seen.bev_from_image, seen.image_sample), seen.logits.shape[-2:]
        depth = seen.measured
        if depth is None:
            depth = nearest_depth(batch.points, batch.point_sample, *calibration, size)
        terms = {}
        if self.depth_loss_weight:
            terms["depth"] = self.depth_loss_weight * self.lift.depth_loss(seen, depth)
        if self.semantics is not None and output.semantics is not None:
            terms["semantics"] = self.semantics.loss(output.semantics, depth, *calibration, batch)
        return terms

    def _nothing_seen(self, batch: Batch) -> CameraOutput:
        """What there is to say of no image."""
        zeros, depth = batch.points.new_zeros, self.lift.num_bins
        image = batch.image_sample[:0]
        seen = DepthOutput(zeros(0, depth, 1, 1), zeros(0, 4, 4), image, zeros(0, 1, 1))
        semantics = None
        if self.semantics is not None and (self.training or self.paints):
            semantics = zeros(0, self.semantics.num_classes, 1, 1)
        return CameraOutput(seen, semantics)
