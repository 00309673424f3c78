"""Sparse voxels of all sorts, for the tests of sparse convolution."""

from __future__ import annotations

from typing import NamedTuple

import torch
from hypothesis import strategies as st
from torch import Tensor

from bevstack.kernels.neighbors import Triple

# Sides that differ: a mix-up of two axes shows.
SHAPE = (5, 6, 7)


class Geometry(NamedTuple):
    """Arguments of ``neighbors`` after the batch size."""

    kernel: Triple = (3, 3, 3)
    stride: Triple = (1, 1, 1)
    padding: Triple = (0, 0, 0)
    dilation: Triple = (1, 1, 1)
    submanifold: bool = False


GEOMETRIES = {
    "submanifold 3": Geometry(submanifold=True),
    "submanifold 1": Geometry((1, 1, 1), submanifold=True),
    "submanifold (3, 1, 1)": Geometry((3, 1, 1), submanifold=True),
    "submanifold (1, 5, 3), dilation": Geometry((1, 5, 3), dilation=(1, 1, 2), submanifold=True),
    "stride 2": Geometry(stride=(2, 2, 2), padding=(1, 1, 1)),
    "stride 2, padding (0, 1, 1)": Geometry(stride=(2, 2, 2), padding=(0, 1, 1)),
    "(3, 1, 1), stride (2, 1, 1)": Geometry((3, 1, 1), (2, 1, 1)),
    "kernel 1, stride 2": Geometry((1, 1, 1), (2, 2, 2)),
    "stride 1 grows": Geometry(padding=(1, 1, 1)),
    "all different": Geometry((2, 3, 4), (1, 2, 3), (1, 0, 2), (2, 2, 1)),
    "stride over the kernel": Geometry((1, 2, 1), (3, 3, 2)),
}


def make_voxels(density=0.2, batch_size=3, shape=SHAPE, seed=0, empty=()) -> Tensor:
    """(V, 4) int32 in random order; samples of different density, those in ``empty`` with none."""
    random = torch.Generator().manual_seed(seed)
    level = density * torch.rand(batch_size, 1, 1, 1, generator=random) * 2
    filled = torch.rand(batch_size, *shape, generator=random) < level
    filled[list(empty)] = False
    cells = filled.nonzero().int()
    return cells[torch.randperm(len(cells), generator=random)]


voxels = st.one_of(
    st.builds(
        make_voxels,
        density=st.sampled_from([0.0, 0.02, 0.2, 0.6]),
        seed=st.integers(0, 2**31),
        empty=st.sampled_from([(), (0,), (2,), (0, 1)]),
    ),
    # One voxel, also in a corner.
    st.tuples(*(st.integers(0, n - 1) for n in (3, *SHAPE))).map(
        lambda cell: torch.tensor([cell], dtype=torch.int32)
    ),
)
