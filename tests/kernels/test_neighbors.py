"""Neighbour tables on the CPU, against the definition and against counts of real voxels."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from voxel_cases import GEOMETRIES, SHAPE, Geometry, make_voxels, voxels

from bevstack.kernels import neighbors, numba_neighbors
from bevstack.kernels.neighbors import _invert_rows, _neighbor_rows, neighbors_reference


def one_by_one(coordinates, shape, batch_size, geometry):
    """Outputs and rows as the definition has it, in plain Python."""
    kernel, stride, padding, dilation, submanifold = geometry
    if submanifold:
        padding = tuple(k // 2 * d for k, d in zip(kernel, dilation))
    number = {tuple(cell): v for v, cell in enumerate(coordinates.tolist())}
    out_shape = [
        (n + 2 * p - d * (k - 1) - 1) // s + 1
        for n, k, s, p, d in zip(shape, kernel, stride, padding, dilation)
    ]
    table = {}
    for batch, *out in np.ndindex(batch_size, *out_shape):
        cells = (
            (
                batch,
                *(o * s - p + k * d for o, s, p, k, d in zip(out, stride, padding, at, dilation)),
            )
            for at in np.ndindex(*kernel)
        )
        row = [number.get(cell, -1) for cell in cells]
        if (batch, *out) in number if submanifold else max(row) >= 0:
            table[(batch, *out)] = row
    outputs = coordinates.tolist() if submanifold else sorted(table)
    return [list(cell) for cell in outputs], [table[tuple(cell)] for cell in outputs]


@pytest.mark.parametrize("geometry", GEOMETRIES.values(), ids=GEOMETRIES)
def test_tables_are_what_the_definition_says_cell_by_cell(geometry):
    cells = make_voxels()
    outputs, rows = one_by_one(cells, SHAPE, 3, geometry)
    for make in (neighbors, neighbors_reference):
        table = make(cells, SHAPE, 3, *geometry)
        assert table.coordinates.tolist() == outputs
        assert table.rows.tolist() == rows
        assert table.rows.dtype == table.coordinates.dtype == torch.int32


@settings(max_examples=150, deadline=None)
@given(voxels, st.sampled_from(list(GEOMETRIES.values())))
def test_same_tables_as_the_reference(cells, geometry):
    ours, expected = (make(cells, SHAPE, 3, *geometry) for make in (neighbors, neighbors_reference))
    assert ours.shape == expected.shape
    assert torch.equal(ours.coordinates, expected.coordinates)
    assert torch.equal(ours.rows, expected.rows)


@settings(max_examples=60, deadline=None)
@given(voxels, st.sampled_from(list(GEOMETRIES.values())))
def test_the_way_back_holds_the_same_pairs(cells, geometry):
    table = neighbors(cells, SHAPE, 3, *geometry)
    pairs = {(u, k, v) for u, row in enumerate(table.rows.tolist()) for k, v in enumerate(row)}
    back = {(u, k, v) for v, row in enumerate(table.by_input.tolist()) for k, u in enumerate(row)}
    assert {p for p in pairs if p[2] >= 0} == {p for p in back if p[0] >= 0}
    assert table.by_input.shape == (len(cells), table.rows.shape[1])


def test_threads_and_order_of_voxels_change_nothing():
    cells = make_voxels(0.3, 2, (20, 40, 50), seed=4)
    shuffle = torch.randperm(len(cells), generator=torch.Generator().manual_seed(0))
    steps = (3, 3, 3), (2, 2, 2), (1, 1, 1), (1, 1, 1)
    args = (20, 40, 50), (10, 20, 25), 2, *steps
    out, rows = numba_neighbors.strided_rows(cells.numpy(), *args, 1)
    many = numba_neighbors.strided_rows(cells.numpy(), *args, 2)
    moved, other = numba_neighbors.strided_rows(cells[shuffle].numpy(), *args, 2)
    assert (out == many[0]).all()
    assert (rows == many[1]).all()
    assert (out == moved).all()
    assert (np.append(shuffle.numpy(), -1)[other] == rows).all()
    args = cells.numpy(), (20, 40, 50), 2, (3, 3, 3), (1, 1, 1)
    assert (
        numba_neighbors.submanifold_rows(*args, 1) == numba_neighbors.submanifold_rows(*args, 2)
    ).all()


# Sites and pairs of the encoder's levels, counted on their own: data/voxels/README.md.
COUNTS = {
    "bevfusion_nuscenes": (
        [17748, 27774, 18711, 10476, 8815],
        [59418, 92071, 64648, 14593],
        [57902, 282030, 233497, 148988, 118389],
    ),
    "centerpoint_nuscenes": (
        [79745, 69276, 29723, 10335, 7658],
        [265739, 233074, 98648, 13673],
        [591581, 969672, 483025, 172003, 114290],
    ),
    "raw10sweeps_nuscenes": (
        [105127, 111474, 54515, 21216, 17698],
        [357467, 375370, 180007, 29101],
        [645271, 1415294, 799819, 328838, 263516],
    ),
}


@pytest.mark.parametrize("name", COUNTS)
def test_real_voxels_have_as_many_sites_and_pairs_as_were_counted(name, shared_data):
    file = shared_data / "voxels" / f"{name}.npz"
    if not file.exists():
        pytest.skip(f"needs {file}")
    cells = torch.from_numpy(np.load(file)["coords"].astype(np.int32))
    down = [Geometry(stride=(2, 2, 2), padding=(z, 1, 1)) for z in (1, 1, 0)]
    down.append(Geometry((3, 1, 1), (2, 1, 1)))
    shape, sites, pairs, own = (41, 1440, 1440), [], [], []
    for geometry in (*down, None):
        table = neighbors(cells, shape, 1, submanifold=True)
        sites.append(len(cells))
        own.append(int((table.rows >= 0).sum()))
        if geometry is not None:
            table = neighbors(cells, shape, 1, *geometry)
            cells, shape = table.coordinates, table.shape
            pairs.append(int((table.rows >= 0).sum()))
    assert shape == (2, 180, 180)
    assert (sites, pairs, own) == COUNTS[name]


def test_operators_are_registered_properly():
    cells, shape = make_voxels(), list(SHAPE)
    check = torch.library.opcheck
    ones, table = [1, 1, 1], neighbors(cells, SHAPE, 3, stride=(2, 2, 2))
    check(_neighbor_rows, (cells, shape, shape, 3, [3, 3, 3], ones, ones, ones, True))
    check(_neighbor_rows, (cells, shape, [3, 3, 4], 3, [3, 3, 3], [2, 2, 2], ones, ones, False))
    check(_invert_rows, (table.rows, len(cells)))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"coordinates": torch.zeros(3, 4)}, "int32"),
        ({"kernel": (3, 2, 3), "submanifold": True}, "odd edges"),
        ({"stride": (2, 2, 2), "submanifold": True}, "stride 1"),
        ({"kernel": (9, 3, 3)}, "does not fit"),
        ({"stride": (0, 1, 1)}, "at least 1"),
        ({"shape": (4096, 4096, 4096)}, "split the batch"),
        ({"shape": (5, 7, 6)}, "outside the grid .* in x"),
        ({"batch_size": 2, "submanifold": True}, "outside the grid .* in batch"),
    ],
)
def test_what_does_not_fit_together_is_refused(change, message):
    good = {"coordinates": make_voxels(), "shape": SHAPE, "batch_size": 3}
    with pytest.raises(ValueError, match=message):
        neighbors(**good | change)
