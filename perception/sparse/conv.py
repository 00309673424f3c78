"""Sparse convolutions as modules, with a choice of engines."""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor, nn

from ...kernels.neighbors import Triple
from ...kernels.sparse_conv import sparse_conv
from .spconv_engine import spconv_convolve
from .tensor import ConvGeometry, SparseTensor

Engine = Literal["native", "spconv", "spconv_triton"]


class _Conv3d(nn.Module):
    """What both convolutions share: weight (kz, ky, kx, C_in, C_out), bias and engine."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        geometry: ConvGeometry,
        bias: bool,
        engine: Engine,
    ):
        super().__init__()
        self.geometry, self.engine = geometry, engine
        self.weight = nn.Parameter(torch.empty(*geometry.kernel, in_channels, out_channels))
        self.bias = nn.Parameter(torch.empty(out_channels)) if bias else None
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw weights as ``torch.nn.Conv3d`` does: uniform, by the number of inputs of a sum."""
        bound = 1 / math.sqrt(max(self.weight[..., 0].numel(), 1))
        nn.init.uniform_(self.weight, -bound, bound)
        if self.bias is not None:
            nn.init.uniform_(self.bias, -bound, bound)

    def forward(self, voxels: SparseTensor) -> SparseTensor:
        """Convolve; (V, C_in) to (U, C_out)."""
        return self.convolve(voxels, self.weight, self.bias)

    def convolve(
        self,
        voxels: SparseTensor,
        weight: Tensor,
        bias: Tensor | None = None,
        residual: Tensor | None = None,
        relu: bool = False,
    ) -> SparseTensor:
        """The same with other weights, and with a residual (U, C_out) and a ReLU on the way.

        Under autocast it runs in autocast's dtype, as torch's convolutions do.
        """
        features = voxels.features
        if torch.is_autocast_enabled(features.device.type):
            features = features.to(torch.get_autocast_dtype(features.device.type))
        weight = weight.to(features.dtype)
        bias = None if bias is None else bias.to(features.dtype)
        residual = None if residual is None else residual.to(features.dtype)
        if self.engine == "native":
            table = voxels.table(self.geometry)
            out = sparse_conv(features, weight, table, bias, residual, relu)
            if self.geometry.submanifold:
                return voxels.with_features(out)
            return SparseTensor(out, table.coordinates, table.shape, voxels.batch_size)
        result = spconv_convolve(self.engine, voxels.with_features(features), weight, self.geometry)
        out = result.features
        for term in (bias, residual):
            out = out if term is None else out + term
        return result.with_features(out.relu() if relu else out)

    def extra_repr(self) -> str:
        *kernel, channels, outputs = self.weight.shape
        _, stride, padding, dilation, _ = self.geometry
        return (
            f"{channels}, {outputs}, kernel={tuple(kernel)}, stride={stride}, "
            f"padding={padding}, dilation={dilation}, engine={self.engine}"
        )


class SubmanifoldConv3d(_Conv3d):
    """A convolution whose outputs are its input voxels (Graham et al., CVPR 2018).

    Args:
        in_channels: channels of the input.
        out_channels: channels of the output.
        kernel: odd edges of the kernel along z, y, x, or one number for all.
        dilation: cells between neighbouring offsets.
        bias: add a learned constant.
        engine: "native" runs everywhere; "spconv" and "spconv_triton" need those packages.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel: int | Triple = 3,
        dilation: int | Triple = 1,
        bias: bool = False,
        engine: Engine = "native",
    ):
        edges = _triple(kernel)
        if any(k % 2 == 0 for k in edges):
            raise ValueError(f"a submanifold convolution has odd edges, not {edges}")
        geometry = ConvGeometry(edges, dilation=_triple(dilation), submanifold=True)
        super().__init__(in_channels, out_channels, geometry, bias, engine)


class SparseConv3d(_Conv3d):
    """A convolution with an output wherever its kernel covers a voxel.

    Args:
        in_channels: channels of the input.
        out_channels: channels of the output.
        kernel: edges of the kernel along z, y, x, or one number for all.
        stride: input cells per output cell.
        padding: cells that the grid is widened by on either side.
        dilation: cells between neighbouring offsets.
        bias: add a learned constant.
        engine: "native" runs everywhere; "spconv" and "spconv_triton" need those packages.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel: int | Triple = 3,
        stride: int | Triple = 1,
        padding: int | Triple = 0,
        dilation: int | Triple = 1,
        bias: bool = False,
        engine: Engine = "native",
    ):
        steps = _triple(kernel), _triple(stride), _triple(padding), _triple(dilation)
        super().__init__(in_channels, out_channels, ConvGeometry(*steps), bias, engine)


def _triple(value: int | Triple) -> Triple:
    if isinstance(value, int):
        return value, value, value
    z, y, x = value
    return z, y, x
