"""The numba loops of calibration against the tensor operations that define them."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bevstack.kernels.grid import BEVGrid
from bevstack.perception.encoders import LSS, LiftSplat
from bevstack.perception.encoders.lidar_depth import (
    last_depth,
    last_depth_on_device,
    nearest_depth,
    nearest_depth_on_device,
)

GRID = BEVGrid((-12.8, 12.8), (-9.6, 9.6), 0.8)


def cameras(seed: int, count: int = 3) -> torch.Tensor:
    """(N, 4, 4) float32 bev_from_image of cameras that look around and a little down."""
    random = np.random.default_rng(seed)
    matrices = []
    for _ in range(count):
        yaw, pitch = random.uniform(-np.pi, np.pi), random.uniform(-0.3, 0.3)
        forward = np.array([np.cos(yaw), np.sin(yaw), np.sin(pitch)])
        forward /= np.linalg.norm(forward)
        right = np.cross(forward, [0, 0, 1])
        right /= np.linalg.norm(right)
        bev_from_camera = np.eye(4)
        bev_from_camera[:3, :3] = np.stack([right, np.cross(forward, right), forward], 1)
        bev_from_camera[:3, 3] = random.uniform([-1, -1, 1], [1, 1, 2])
        intrinsic = np.eye(4)
        intrinsic[:2, :3] = [[10.0, 0, 5.5], [0, 10.0, 3.5]]
        matrices.append(bev_from_camera @ np.linalg.inv(intrinsic))
    return torch.tensor(np.array(matrices), dtype=torch.float32)


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 10_000), truncate=st.booleans())
def test_frustum_cells_are_those_of_the_tensor_operations(seed, truncate):
    """All but the few that rounding may put on either side of a border."""
    if truncate:
        lift = LSS(4, GRID, 4, (1.0, 21.0), 0.5, (-1.0, 4.0), 1, truncate_cells=True)
    else:
        lift = LiftSplat(4, GRID, 4, (1.0, 21.0), 0.5, (-1.0, 4.0))
    args = cameras(seed), (8, 12), torch.tensor([0, 1, 1])
    found, expected = lift.frustum_cells(*args), lift.frustum_cells_on_device(*args)
    assert found.shape == (3, 40, 8, 12)
    assert (found != expected).float().mean() < 1e-3
    assert (found >= 0).any()


@pytest.mark.parametrize(
    ("cpu", "on_device"),
    [(nearest_depth, nearest_depth_on_device), (last_depth, last_depth_on_device)],
)
@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 10_000), count=st.sampled_from([0, 1, 2000]))
def test_depth_of_lidar_is_that_of_the_tensor_operations(cpu, on_device, seed, count):
    random = np.random.default_rng(seed)
    points = torch.tensor(random.uniform(-12, 12, (count, 5)), dtype=torch.float32)
    sample = torch.tensor(random.integers(0, 2, count), dtype=torch.int64)
    args = points, sample, cameras(seed), torch.tensor([0, 1, 1]), (8, 12)
    found, expected = cpu(*args), on_device(*args)
    same = torch.isclose(found, expected, rtol=1e-4)
    assert (~same).sum() <= 2  # a point on the border of two pixels
    assert count < 2000 or (found != expected.new_tensor(torch.inf)).any()
