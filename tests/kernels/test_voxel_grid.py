"""Voxel grids, and values carried from one to another."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bevstack.kernels.voxel_grid import (
    OCC3D_GRID,
    OPENOCCUPANCY_GRID,
    SURROUNDOCC_GRID,
    VoxelGrid,
    nearest_voxels,
)

SMALL = VoxelGrid((-3, 3), (-2, 2), (-1, 1), 0.5)


def test_published_grids_have_their_published_shapes():
    assert OCC3D_GRID.shape == SURROUNDOCC_GRID.shape == (200, 200, 16)
    assert OPENOCCUPANCY_GRID.shape == (512, 512, 40)
    assert OCC3D_GRID.bev.shape == (200, 200)


def test_a_height_that_is_no_whole_number_of_voxels_is_refused():
    with pytest.raises(ValueError, match=r"grid.z_range .* voxel_size"):
        VoxelGrid((-4, 4), (-4, 4), (-1, 5.3), 0.4)


def test_the_same_grid_maps_onto_itself():
    index = nearest_voxels(OCC3D_GRID, OCC3D_GRID, np.eye(4))
    assert np.array_equal(index.ravel(), np.arange(index.size))


@settings(max_examples=30, deadline=None)
@given(
    angle=st.floats(-3.2, 3.2),
    scale=st.floats(0.8, 1.25),
    shift=st.tuples(*[st.floats(-1, 1)] * 3),
    mirror=st.booleans(),
)
def test_every_voxel_takes_the_one_that_holds_its_middle(angle, scale, shift, mirror):
    c, s = scale * np.cos(angle), scale * np.sin(angle)
    matrix = np.array([[c, -s, 0, 0], [s, c, 0, 0], [0, 0, scale, 0], [0, 0, 0, 1]], float)
    matrix[:3, 3] = shift
    matrix = matrix @ np.diag([1, -1 if mirror else 1, 1, 1])
    target = VoxelGrid((-2, 3), (-2, 2), (-1, 1.5), 0.25)
    index = nearest_voxels(target, SMALL, matrix)
    cells = np.stack(np.meshgrid(*map(np.arange, target.shape), indexing="ij"), -1) + 0.5
    metres = target.to_metres(cells) @ matrix[:3, :3].T + matrix[:3, 3]
    source = SMALL.to_voxels(metres)
    clear = (np.abs(source - np.round(source)) > 1e-6).all(-1)  # rounding decides at a border
    cell = np.floor(source).astype(int)
    inside = ((cell >= 0) & (cell < SMALL.shape)).all(-1)
    _, ny, nz = SMALL.shape
    expected = np.where(inside, (cell[..., 0] * ny + cell[..., 1]) * nz + cell[..., 2], -1)
    assert np.array_equal(index[clear], expected[clear])
