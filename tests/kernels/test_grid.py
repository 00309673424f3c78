"""The BEV grid: where a point falls, and which grids are refused."""

import subprocess
import sys

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from bevstack.kernels.grid import BEVGrid


@st.composite
def grids(draw):
    """Rectangular grids whose sides are whole numbers of cells."""
    size = draw(st.sampled_from([0.075, 0.1, 0.3, 0.5, 0.8, 1.0]))
    nx, ny = draw(st.integers(1, 400)), draw(st.integers(1, 400))
    x0, y0 = draw(st.integers(-60, 10)), draw(st.integers(-60, 10))
    return BEVGrid((x0, x0 + nx * size), (y0, y0 + ny * size), size), (nx, ny)


def test_truncated_size_is_not_the_number_of_cells():
    # Peer bug 6: int(0.3 / 0.1) is 2; and 153.6 / 0.8 is 191.99999999999997.
    assert BEVGrid((0, 0.3), (-76.8, 76.8), 0.1).shape == (3, 1536)
    assert BEVGrid((-76.8, 76.8), (0, 0.8), 0.8).shape == (192, 1)


@given(grids())
def test_shape_is_the_number_of_cells_it_was_made_from(case):
    grid, shape = case
    assert grid.shape == shape
    assert grid.num_cells == shape[0] * shape[1]


@given(grids(), st.floats(0, 1), st.floats(0, 1))
def test_point_falls_in_the_cell_whose_edges_hold_it(case, u, v):
    grid, (nx, ny) = case
    i, j = u * nx, v * ny
    x, y = grid.to_metres(i, j)
    cell = int(grid.flat_cell(np.array([x]), np.array([y]))[0])
    if cell >= 0:
        # Next to an edge, rounding may decide either way.
        assert abs(cell // ny + 0.5 - i) <= 0.5 + 1e-6
        assert abs(cell % ny + 0.5 - j) <= 0.5 + 1e-6
    else:
        assert max(u, v) > 1 - 1e-6 or min(u, v) < 1e-6


@given(grids(), st.floats(-0.999, -0.001))
def test_point_less_than_a_cell_below_the_edge_is_outside(case, below):
    # Peer bug 5: truncation towards zero puts it into cell 0.
    grid, _ = case
    x, y = grid.to_metres(np.array([below, 0.5]), np.array([0.5, below]))
    assert grid.flat_cell(x, y).tolist() == [-1, -1]
    assert grid.flat_cell(torch.from_numpy(x), torch.from_numpy(y)).tolist() == [-1, -1]


@given(grids())
def test_lower_edge_is_inside_and_upper_edge_is_outside(case):
    grid, _ = case
    middle = sum(grid.y_range) / 2
    low, high = grid.x_range
    for dtype in (np.float64, np.float32):
        low_x, high_x, y = np.array([[low], [high], [middle]]).astype(dtype)
        if float(low_x[0]) >= low:
            assert grid.flat_cell(low_x, y)[0] >= 0
        if float(high_x[0]) >= high:
            assert grid.flat_cell(high_x, y)[0] == -1


@given(grids(), st.integers(0, 2**32 - 1))
def test_numpy_and_torch_agree(case, seed):
    grid, (nx, ny) = case
    i, j = np.random.default_rng(seed).uniform(-0.2, 1.2, (2, 50)) * [[nx], [ny]]
    x, y = grid.to_metres(i, j)
    ours = grid.flat_cell(x, y)
    assert ours.dtype == np.int64
    assert torch.equal(grid.flat_cell(torch.from_numpy(x), torch.from_numpy(y)), torch.tensor(ours))


def test_rectangular_grid_counts_x_first():
    # Peer bug 12: mixed-up sides show only when they differ.
    grid = BEVGrid((0, 4), (0, 2), 1.0)
    assert grid.shape == (4, 2)
    assert int(grid.flat_cell(np.array(3.5), np.array(1.5))) == 7
    assert int(grid.flat_cell(np.array(1.5), np.array(0.5))) == 2
    assert int(grid.flat_cell(np.array(1.5), np.array(3.5))) == -1


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_point_that_is_no_number_is_outside(value):
    grid = BEVGrid((0, 4), (0, 2), 1.0)
    x, y = np.array([value, 1.0]), np.array([1.0, value])
    assert grid.flat_cell(x, y).tolist() == [-1, -1]
    assert grid.flat_cell(torch.from_numpy(x), torch.from_numpy(y)).tolist() == [-1, -1]


@pytest.mark.parametrize(("x_range", "size"), [((0, 10), 0.8), ((5, 5), 1.0), ((5, 0), 1.0)])
def test_range_that_is_no_whole_number_of_cells_is_refused(x_range, size):
    with pytest.raises(ValueError, match=r"grid\.x_range spans .* cells of"):
        BEVGrid(x_range, (0, size), size)


@given(grids())
def test_metres_and_cells_are_inverse(case):
    grid, (nx, ny) = case
    i, j = np.linspace(0, nx, 7), np.linspace(0, ny, 7)
    back = grid.to_cells(*grid.to_metres(i, j))
    np.testing.assert_allclose(back, (i, j), atol=1e-8)


def test_coarser_grid_covers_the_same_ground():
    grid = BEVGrid((-54, 54), (-27, 27), 0.3)
    coarse = grid.coarser(4)
    assert (coarse.x_range, coarse.y_range) == (grid.x_range, grid.y_range)
    assert coarse.shape == (90, 45)


def test_importing_the_grid_needs_no_torch():
    code = "import sys, bevstack.kernels.grid; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
