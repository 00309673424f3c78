"""Sparse 3-D convolution layers on voxels."""

from .conv import Engine, SparseConv3d, SubmanifoldConv3d
from .layers import FeatureNorm, SparseSequential, conv_norm_relu
from .tensor import SparseTensor, height_into_channels, to_dense

__all__ = [
    "Engine",
    "FeatureNorm",
    "SparseConv3d",
    "SparseSequential",
    "SparseTensor",
    "SubmanifoldConv3d",
    "conv_norm_relu",
    "height_into_channels",
    "to_dense",
]
