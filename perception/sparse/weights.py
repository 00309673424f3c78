"""Weight layouts of published sparse convolutions, to and from ours: (kz, ky, kx, C_in, C_out).

None of them flips the kernel (checked against dense ``conv3d``), so that only axes move.
"""

from __future__ import annotations

from torch import Tensor


def from_bevfusion(weight: Tensor) -> Tensor:
    """From MIT BEVFusion, whose spconv 1.x works on (x, y, z): (kx, ky, kz, C_in, C_out)."""
    return _five(weight).permute(2, 1, 0, 3, 4)


def to_bevfusion(weight: Tensor) -> Tensor:
    """The inverse of :func:`from_bevfusion`."""
    return _five(weight).permute(2, 1, 0, 3, 4)


def from_spconv1(weight: Tensor) -> Tensor:
    """From spconv 1.x and mmcv on (z, y, x), as in mmdetection3d and OpenPCDet of old.

    (kz, ky, kx, C_in, C_out), which is our layout.
    """
    return _five(weight)


def from_spconv2(weight: Tensor) -> Tensor:
    """From spconv 2.x on (z, y, x), as in mmdetection3d 1.x: (C_out, kz, ky, kx, C_in)."""
    return _five(weight).permute(1, 2, 3, 4, 0)


def to_spconv2(weight: Tensor) -> Tensor:
    """The inverse of :func:`from_spconv2`."""
    return _five(weight).permute(4, 0, 1, 2, 3)


def from_mmdetection3d_bevfusion(weight: Tensor) -> Tensor:
    """From mmdetection3d's BEVFusion: spconv 2.x on (x, y, z), (C_out, kx, ky, kz, C_in)."""
    return _five(weight).permute(3, 2, 1, 4, 0)


def _five(weight: Tensor) -> Tensor:
    if weight.ndim != 5:
        raise ValueError(f"a 3-D convolution's weight has 5 axes, not {tuple(weight.shape)}")
    return weight
