"""Features of sparse voxels, and their way back to a dense tensor."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ...kernels.neighbors import NeighborTable, Triple, neighbors


class ConvGeometry(NamedTuple):
    """What a neighbour table depends on besides the voxels; triples along z, y, x."""

    kernel: Triple
    stride: Triple = (1, 1, 1)
    padding: Triple = (0, 0, 0)
    dilation: Triple = (1, 1, 1)
    submanifold: bool = False


@dataclass(frozen=True)
class SparseTensor:
    """V voxels with features, of B samples."""

    features: Tensor  # (V, C)
    coordinates: Tensor  # (V, 4) int32 batch, z, y, x; no row twice
    shape: Triple  # cells of the grid along z, y, x
    batch_size: int  # B; any sample may have no voxel
    # Made when first asked for, and shared by all tensors of the same voxels.
    tables: dict[ConvGeometry, NeighborTable] = field(default_factory=dict, repr=False)
    # What another engine keeps for these voxels, by its name.
    engine_state: dict[str, Any] = field(default_factory=dict, repr=False)

    def with_features(self, features: Tensor) -> SparseTensor:
        """Other features (V, C') on the same voxels."""
        return replace(self, features=features)

    def table(self, geometry: ConvGeometry) -> NeighborTable:
        """The neighbour table of a convolution of these voxels."""
        if geometry not in self.tables:
            self.tables[geometry] = neighbors(
                self.coordinates, self.shape, self.batch_size, *geometry
            )
        return self.tables[geometry]


def to_dense(voxels: SparseTensor) -> Tensor:
    """(B, C, Z, Y, X), zero where there is no voxel; differentiable in the features."""
    Z, Y, X = voxels.shape
    B, C = voxels.batch_size, voxels.features.shape[1]
    batch, z, y, x = voxels.coordinates.long().unbind(1)
    canvas = voxels.features.new_zeros(B * Z * Y * X, C)
    canvas = canvas.index_copy(0, ((batch * Z + z) * Y + y) * X + x, voxels.features)
    return canvas.view(B, Z, Y, X, C).permute(0, 4, 1, 2, 3)


def height_into_channels(voxels: SparseTensor) -> Tensor:
    """(B, C * Z, X, Y) BEV map, channel c * Z + z; zero where there is no voxel.

    The last step of SECOND's encoder (Yan et al., Sensors 2018), with x before y as in MIT
    BEVFusion. Channels last in memory, which is how 2-D convolutions take it.
    """
    Z, Y, X = voxels.shape
    B, C = voxels.batch_size, voxels.features.shape[1]
    batch, z, y, x = voxels.coordinates.long().unbind(1)
    cell = (batch * X + x) * Y + y
    first = cell * (C * Z) + z  # of channel 0
    place = first.unsqueeze(1) + torch.arange(C, device=cell.device) * Z
    canvas = voxels.features.new_zeros(B * X * Y * C * Z)
    canvas = canvas.index_copy(0, place.flatten(), voxels.features.flatten())
    return canvas.view(B, X, Y, C * Z).movedim(-1, 1)
