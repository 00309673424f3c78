"""Triton kernels under Triton's interpreter; run by test_triton.py with TRITON_INTERPRET=1.

Fresh memory is filled with NaN, so that a forgotten store shows.
"""

import pytest
import torch
import triton.language as tl
import triton_interpreter  # noqa: F401
from kernel_cases import SHAPES, TOLERANCE, make_lift
from triton.runtime.interpreter import InterpretedFunction

from bevstack.kernels import triton_bev_pool, triton_voxelize
from bevstack.kernels.bev_pool import bev_pool_reference, plan_on_device
from bevstack.kernels.voxelize import voxel_max_reference, voxel_mean_reference

if not isinstance(triton_bev_pool.run_kernel, InterpretedFunction):
    pytest.fail("set TRITON_INTERPRET=1: Triton reads it where a kernel is defined")

DTYPES = [torch.float32, torch.bfloat16, torch.float16]


@pytest.fixture(autouse=True)
def _poisoned_memory(monkeypatch):
    torch.use_deterministic_algorithms(True)
    torch.utils.deterministic.fill_uninitialized_memory = True
    assert torch.empty(3).isnan().all()
    # The interpreter multiplies the bits of bfloat16 as integers. Products of its values are exact
    # in float32, so that the kernel computes the same there.
    real = triton_bev_pool.dot_type
    monkeypatch.setattr(
        triton_bev_pool,
        "dot_type",
        lambda *t: tl.float32 if real(*t) == tl.bfloat16 else real(*t),
    )
    yield
    torch.use_deterministic_algorithms(False)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_pooling_matches_the_float64_reference(shape, dtype):
    lift = make_lift(**shape, dtype=dtype)
    exact = lift.to(torch.float64)
    depth, features = exact.depth.requires_grad_(), exact.features.requires_grad_()
    expected = bev_pool_reference(depth, features, lift.cell, lift.num_cells)
    grad = torch.randn(expected.shape, generator=torch.Generator().manual_seed(1)).to(dtype)
    gradients = torch.autograd.grad(expected, (depth, features), grad.double())
    plan = plan_on_device(lift.cell, lift.num_cells)
    ours = (
        triton_bev_pool.pool_runs(lift.depth, lift.features, *plan),
        *triton_bev_pool.pool_runs_backward(grad, lift.depth, lift.features, *plan[2:]),
    )
    tolerance = {"rtol": TOLERANCE[dtype], "atol": TOLERANCE[dtype]}
    for got, want in zip(ours, (expected, *gradients)):
        assert got.dtype == dtype
        torch.testing.assert_close(got.double(), want, **tolerance)


def test_depth_in_float32_with_features_in_half_precision():
    lift = make_lift(**SHAPES["odd sizes"])
    plan = plan_on_device(lift.cell, lift.num_cells)
    half, grad = lift.features.half(), torch.ones(lift.num_cells, 13).half()
    pooled = triton_bev_pool.pool_runs(lift.depth, half, *plan)
    gradients = triton_bev_pool.pool_runs_backward(grad, lift.depth, half, *plan[2:])
    assert [part.dtype for part in (pooled, *gradients)] == [
        half.dtype,
        lift.depth.dtype,
        half.dtype,
    ]
    expected = bev_pool_reference(lift.depth, half.float(), lift.cell, lift.num_cells)
    torch.testing.assert_close(pooled.float(), expected, rtol=2e-3, atol=2e-3)
    to_depth = half.float().sum(-1)[:, None].where(lift.cell >= 0, 0)
    torch.testing.assert_close(gradients[0], to_depth, rtol=1e-5, atol=1e-5)


def test_pooling_of_no_point_gives_zeros():
    lift = make_lift()
    plan = plan_on_device(torch.full_like(lift.cell, -1), 7)
    grad = torch.ones(7, 8)
    results = (
        triton_bev_pool.pool_runs(lift.depth, lift.features, *plan),
        *triton_bev_pool.pool_runs_backward(grad, lift.depth, lift.features, *plan[2:]),
    )
    assert not any(tensor.any() for tensor in results)


def test_runs_that_have_no_room_for_their_sum_are_summed_from_their_points(monkeypatch):
    lift = make_lift(**SHAPES["odd sizes"])
    plan = plan_on_device(lift.cell, lift.num_cells)
    expected = bev_pool_reference(*lift.args)
    for points_per_partial in (1, 3, 10, 10**9):
        monkeypatch.setattr(triton_bev_pool, "POINTS_PER_PARTIAL", points_per_partial)
        pooled = triton_bev_pool.pool_runs(lift.depth, lift.features, *plan)
        torch.testing.assert_close(pooled, expected, rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize("channels", [1, 5, 64, 130])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_mean_and_maximum_match_the_reference(channels, dtype):
    random = torch.Generator().manual_seed(0)
    features = torch.randn(90, channels, generator=random).to(dtype)
    point_voxel = torch.randint(-1, 20, (90,), generator=random)
    counts = point_voxel[point_voxel >= 0].bincount(minlength=25)
    mean = triton_voxelize.mean_of_points(features, point_voxel, counts)
    expected = voxel_mean_reference(features.double(), point_voxel, counts)
    tolerance = {"rtol": TOLERANCE[dtype], "atol": TOLERANCE[dtype]}
    torch.testing.assert_close(mean.double(), expected, **tolerance)
    greatest, winner = triton_voxelize.max_of_points(features, point_voxel, 25)
    assert torch.equal(greatest, voxel_max_reference(features, point_voxel, 25))
    filled = counts > 0
    assert torch.equal(features.gather(0, winner[filled]), greatest[filled])
    assert (winner[~filled] == -1).all()


def test_first_of_equal_maxima_wins_and_no_number_beats_all():
    features = torch.tensor([[1.0], [3.0], [3.0], [torch.nan], [9.0]])
    greatest, winner = triton_voxelize.max_of_points(features, torch.tensor([0, 0, 0, 1, 1]), 2)
    assert winner.tolist() == [[1], [3]]
    assert greatest[1].isnan().all()
