"""Layers that work on the features of voxels alone, and the block that encoders are made of."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .conv import SparseConv3d, SubmanifoldConv3d
from .tensor import SparseTensor


class FeatureNorm(nn.BatchNorm1d):
    """Batch normalisation over voxels (V, C).

    Fewer than two voxels have no statistics: in training the running ones are used then, so that
    an empty cloud is legal.
    """

    def forward(self, input: Tensor) -> Tensor:
        if self.training and len(input) < 2:
            return nn.functional.batch_norm(
                *(input, self.running_mean, self.running_var, self.weight, self.bias),
                training=False,
                eps=self.eps,
            )
        return super().forward(input)


class SparseSequential(nn.Sequential):
    """Modules one after another: sparse ones take the voxels, any other their features."""

    def forward(self, input: SparseTensor) -> SparseTensor:
        for module in self:
            sparse = isinstance(module, SparseConv3d | SubmanifoldConv3d | SparseSequential)
            input = module(input) if sparse else input.with_features(module(input.features))
        return input


def conv_norm_relu(
    conv: SparseConv3d | SubmanifoldConv3d,
    norm: FeatureNorm,
    voxels: SparseTensor,
    residual: Tensor | None = None,
) -> SparseTensor:
    """Convolution, batch normalisation, residual and ReLU; at inference in one go.

    At inference the normalisation is folded into weight and bias, and the rest is done while the
    results of the convolution are written.

    Args:
        conv: the convolution.
        norm: its normalisation.
        voxels: the input.
        residual: (U, C_out) added before the ReLU, or None.
    """
    if norm.training or torch.is_grad_enabled():
        out = conv(voxels)
        features = norm(out.features)
        if residual is not None:
            features = features + residual
        return out.with_features(features.relu())
    weight, bias = fold_norm(conv, norm)
    return conv.convolve(voxels, weight, bias, residual, relu=True)


def fold_norm(conv: SparseConv3d | SubmanifoldConv3d, norm: FeatureNorm) -> tuple[Tensor, Tensor]:
    """Weight and bias of the one convolution that does what ``norm`` after ``conv`` does."""
    assert norm.running_mean is not None
    assert norm.running_var is not None
    scale = norm.weight * (norm.running_var + norm.eps).rsqrt()
    before = norm.running_mean if conv.bias is None else norm.running_mean - conv.bias
    return conv.weight * scale, norm.bias - before * scale
