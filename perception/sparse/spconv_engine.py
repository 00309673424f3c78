"""spconv and spconv-triton as engines: other kernels behind the same modules.

Both are optional: spconv 2.x for CUDA (or, forward only, the CPU; right there with
OMP_NUM_THREADS=1 alone, since its threads race), spconv-triton for GPUs.
"""

from __future__ import annotations

from importlib import import_module
from math import prod
from typing import Any

import torch
from torch import Tensor

from .tensor import ConvGeometry, SparseTensor
from .weights import to_spconv2

_MODULES = {"spconv": "spconv.pytorch", "spconv_triton": "spconv_triton.pytorch"}


def spconv_convolve(
    engine: str, voxels: SparseTensor, weight: Tensor, geometry: ConvGeometry
) -> SparseTensor:
    """Convolve by another engine; voxels come out in our order, so that engines are alike.

    Args:
        engine: "spconv" or "spconv_triton".
        voxels: the input.
        weight: (kz, ky, kx, C_in, C_out).
        geometry: of the convolution.

    Raises:
        ImportError: if the engine is not installed.
    """
    spconv: Any = import_module(_MODULES[engine])
    kernel, stride, padding, dilation, submanifold = geometry
    if submanifold:
        padding = tuple(k // 2 * d for k, d in zip(kernel, dilation))
    options: dict[str, Any] = {"padding": padding, "dilation": dilation, "bias": False}
    kind = spconv.SubMConv3d if submanifold else spconv.SparseConv3d
    # Pairs found once are kept under this key, as our tables are.
    layer = kind(*weight.shape[-2:], kernel, stride, indice_key=str(geometry), **options)
    del layer.weight
    layer.weight = to_spconv2(weight).contiguous()  # its kernels take addresses
    layer.training = torch.is_grad_enabled()
    given = spconv.SparseConvTensor(
        voxels.features, voxels.coordinates, list(voxels.shape), voxels.batch_size
    )
    given.indice_dict = voxels.engine_state.setdefault(engine, {})
    out = layer(given)
    if submanifold:
        return voxels.with_features(out.features)
    Z, Y, X = shape = tuple(out.spatial_shape)
    assert voxels.batch_size * prod(shape) < 2**63
    batch, z, y, x = out.indices.long().unbind(1)
    order = (((batch * Z + z) * Y + y) * X + x).argsort()
    return SparseTensor(
        out.features[order], out.indices[order].contiguous(), (Z, Y, X), voxels.batch_size
    )
