"""The view transforms of MIT BEVFusion (Liu et al., ICRA 2023), habits included.

They differ from :class:`LiftSplat` in what published weights were trained with: the pixels of a
feature map are spread evenly from the first to the last pixel of the image, a bin stands for its
near end, and the network of :class:`DepthLSS` sees the LiDAR's depth image in full resolution.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from ...kernels.grid import BEVGrid
from ..layers import ConvBlock, full_precision
from .frustum import DepthOutput, FrustumLift
from .lidar_depth import last_depth

DEPTH_CHANNELS = 64  # of the depth image's features


class LSS(FrustumLift):
    """Lift by one 1x1 convolution, splat, and shrink the map (BEVFusion's LSSTransform).

    Args:
        in_channels: channels of the image features.
        grid: the BEV grid to fill.
        out_channels: channels of the BEV map.
        depth_range: nearest and farthest depth, metres along the optical axis.
        depth_step: width of a depth bin, metres.
        height_range: lowest and highest z that is pooled, metres in the BEV frame.
        downsample: pool into cells this many times finer than the grid's, 1 or 2; with 2, three
            convolutions shrink the map, the second of them strided.
        truncate_cells: find cells by truncation towards zero, as published models did: what lies
            up to a cell below the lower edges (in z: up to the whole height) is pooled too.
    """

    def __init__(
        self,
        in_channels: int,
        grid: BEVGrid,
        out_channels: int = 80,
        depth_range: tuple[float, float] = (1.0, 60.0),
        depth_step: float = 0.5,
        height_range: tuple[float, float] = (-10.0, 10.0),
        downsample: int = 2,
        truncate_cells: bool = False,
    ):
        super().__init__(
            *(grid, out_channels, depth_range, depth_step, height_range, downsample),
            depth_in_bin=0.0,
            truncate_cells=truncate_cells,
        )
        if downsample not in (1, 2):
            raise ValueError(f"lift.downsample is {downsample}; this view transform has 1 or 2")
        self.depth_net = self._depth_net(in_channels)
        strides = (1, 2, 1) if downsample == 2 else ()
        self.bev_net = nn.Sequential(
            *(ConvBlock(out_channels, out_channels, 3, stride) for stride in strides)
        )

    def _depth_net(self, in_channels: int) -> nn.Module:
        return nn.Conv2d(in_channels, self.num_bins + self.out_channels, 1)

    def image_from_feature(self, stride: int, size: Sequence[int]) -> Tensor:
        """(4, 4) takes (u * d, v * d, d, 1) in feature pixels to the same in image pixels.

        The first and the last feature pixel lie on the first and the last image pixel.

        Args:
            stride: image pixels per feature pixel.
            size: H, W of the feature map.
        """
        matrix = torch.eye(4)
        matrix[0, 0], matrix[1, 1] = _spacing(stride, size[1]), _spacing(stride, size[0])
        return matrix

    def forward(
        self,
        features: Tensor,
        bev_from_image: Tensor,
        image_sample: Tensor,
        batch_size: int,
        points: Tensor,
        point_sample: Tensor,
    ) -> tuple[Tensor, DepthOutput]:
        """Lift and pool one batch.

        Args:
            features: (N, C_in, H, W), all images of all samples.
            bev_from_image: (N, 4, 4) takes (u * d, v * d, d, 1), u and v in feature pixels as
                :meth:`image_from_feature` has them, to the BEV frame.
            image_sample: (N,) which sample an image belongs to.
            batch_size: number of samples, some of which may have no image.
            points: (P, 3 or more) x, y, z in the BEV frame; :class:`DepthLSS` uses them.
            point_sample: (P,) which sample a point belongs to.

        Returns:
            The map (batch_size, C_out, *grid.shape) and the predicted depth.
        """
        size = features.shape[-2:]
        measured = self.measured_depth(points, point_sample, bev_from_image, image_sample, size)
        bev, logits = self.lift(
            *(features, measured, None),
            pool=lambda logits, context: self.splat(
                logits, context, bev_from_image, image_sample, batch_size
            ),
        )
        return bev, DepthOutput(logits, bev_from_image, image_sample, None)

    def measured_depth(
        self,
        points: Tensor,
        point_sample: Tensor,
        bev_from_image: Tensor,
        image_sample: Tensor,
        size: Sequence[int],
    ) -> Tensor | None:
        """The LiDAR's depth image, where the prediction is given it."""
        return None

    def lift(
        self,
        features: Tensor,
        measured: Tensor | None,
        painted: Tensor | None,
        pool: Callable[[Tensor, Tensor], Tensor],
    ) -> tuple[Tensor, Tensor]:
        """All but the geometry; as in :class:`LiftSplat`, which alone can paint."""
        assert painted is None
        logits, context = self.depth_net(features).split([self.num_bins, self.out_channels], 1)
        return self.bev_net(pool(logits, context)), logits


class DepthLSS(LSS):
    """:class:`LSS` whose depth prediction also sees the LiDAR points (DepthLSSTransform).

    The image features must have stride 8. Arguments as in :class:`LSS`.
    """

    STRIDE = 8  # of the convolutions on the depth image

    def _depth_net(self, in_channels: int) -> nn.Module:
        # As published, these convolutions have a bias and a normalisation.
        self.depth_image_net = nn.Sequential(
            ConvBlock(1, 8, 1, bias=True),
            ConvBlock(8, 32, 5, 4, bias=True),
            ConvBlock(32, DEPTH_CHANNELS, 5, 2, bias=True),
        )
        return nn.Sequential(
            ConvBlock(DEPTH_CHANNELS + in_channels, in_channels, bias=True),
            ConvBlock(in_channels, in_channels, bias=True),
            super()._depth_net(in_channels),
        )

    def image_from_feature(self, stride: int, size: Sequence[int]) -> Tensor:
        """See :class:`LSS`."""
        if stride != self.STRIDE:
            raise ValueError(
                f"DepthLSS needs image features of stride {self.STRIDE}, not {stride}; let the "
                "backbone's out_stages begin with 2"
            )
        return super().image_from_feature(stride, size)

    def measured_depth(
        self,
        points: Tensor,
        point_sample: Tensor,
        bev_from_image: Tensor,
        image_sample: Tensor,
        size: Sequence[int],
    ) -> Tensor | None:
        """(N, 8 H, 8 W) metres, 0 where there is no point."""
        feature_from_image = torch.ones(4, device=bev_from_image.device)
        feature_from_image[:2] = 1 / torch.tensor([_spacing(self.STRIDE, n) for n in size[::-1]])
        return last_depth(
            *(points, point_sample, bev_from_image * feature_from_image, image_sample),
            (size[0] * self.STRIDE, size[1] * self.STRIDE),
        )

    def lift(
        self,
        features: Tensor,
        measured: Tensor | None,
        painted: Tensor | None,
        pool: Callable[[Tensor, Tensor], Tensor],
    ) -> tuple[Tensor, Tensor]:
        """See :class:`LSS`."""
        assert measured is not None
        with full_precision(measured):  # in bfloat16 metres at 50 m are a quarter off
            hint = self.depth_image_net(measured[:, None])
        features = torch.cat([hint.to(features.dtype), features], 1)
        return super().lift(features, None, painted, pool)


def _spacing(stride: int, cells: int) -> float:
    """Image pixels between the pixels of a feature map that reaches from edge to edge."""
    return (stride * cells - 1) / max(cells - 1, 1)
