"""BEV pooling on the CPU, against the float64 definition."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from kernel_cases import SHAPES, TOLERANCE, load_tool, make_lift
from torch._subclasses.fake_tensor import FakeTensorMode

from bevstack.kernels import bev_pool, plan_bev_pool
from bevstack.kernels.bev_pool import (
    _bev_pool,
    _bev_pool_backward,
    _plan_bev_pool,
    bev_pool_reference,
    plan_cpu,
    plan_on_device,
)

lifts = st.builds(
    make_lift,
    N=st.integers(1, 3),
    D=st.integers(1, 5),
    H=st.integers(1, 9),
    W=st.integers(1, 5),
    C=st.integers(1, 20),
    num_cells=st.integers(1, 30),
    seed=st.integers(0, 2**31),
)


def pooled_with_gradients(pool, lift, grad):
    depth = lift.depth.clone().requires_grad_()
    features = lift.features.clone().requires_grad_()
    pooled = pool(depth, features, lift.cell, lift.num_cells)
    return pooled, *torch.autograd.grad(pooled, (depth, features), grad.to(pooled.dtype))


def assert_matches_the_reference(lift):
    dtype = lift.features.dtype
    grad = torch.randn(
        lift.num_cells, lift.features.shape[-1], generator=torch.Generator().manual_seed(1)
    ).to(dtype)
    expected = pooled_with_gradients(bev_pool_reference, lift.to(torch.float64), grad)
    ours = pooled_with_gradients(bev_pool, lift, grad)
    for got, want in zip(ours, expected):
        assert got.dtype == dtype
        torch.testing.assert_close(got.double(), want, rtol=TOLERANCE[dtype], atol=TOLERANCE[dtype])


def test_reference_gradients_by_finite_differences():
    lift = make_lift(N=1, D=2, H=3, W=2, C=2, num_cells=4, dtype=torch.float64)
    depth, features = lift.depth.requires_grad_(), lift.features.requires_grad_()
    for pool in (bev_pool_reference, bev_pool):
        assert torch.autograd.gradcheck(
            lambda d, f, pool=pool: pool(d, f, lift.cell, lift.num_cells), (depth, features)
        )


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_matches_the_float64_reference(shape, dtype):
    assert_matches_the_reference(make_lift(**shape, dtype=dtype))


@settings(max_examples=50, deadline=None)
@given(lifts)
def test_matches_the_reference_on_random_geometry(lift):
    assert_matches_the_reference(lift)


def test_matches_the_reference_on_the_real_calibration(shared_data):
    geometry = load_tool("bench_geometry")
    rig = geometry.real_rig(shared_data / "nuscenes-keyframe" / "v1.0-mini")
    cell = torch.from_numpy(geometry.frustum_cells(geometry.BEVFUSION, *rig))
    lift = make_lift(N=1, D=1, H=1, W=1)
    N, D, H, W = cell.shape
    depth, features = torch.rand(N, D, H, W) / D, torch.randn(N, H, W, 4)
    lift = type(lift)(depth, features, cell, geometry.BEVFUSION.grid.num_cells)
    assert_matches_the_reference(lift)


def test_point_outside_the_grid_adds_nothing():
    cell = torch.tensor([-1, 0]).view(1, 2, 1, 1)
    pooled = bev_pool(torch.ones(1, 2, 1, 1), torch.ones(1, 1, 1, 3), cell, num_cells=1)
    assert pooled.tolist() == [[1, 1, 1]]


def test_no_point_inside_gives_zeros():
    # Peer bug 8: an exception.
    lift = make_lift()
    outside = torch.full_like(lift.cell, -1)
    grad = torch.ones(7, 8)
    lift = type(lift)(lift.depth, lift.features, outside, 7)
    pooled, *gradients = pooled_with_gradients(bev_pool, lift, grad)
    assert pooled.shape == (7, 8)
    assert not any(tensor.any() for tensor in (pooled, *gradients))


def test_value_outside_the_grid_does_not_matter_even_if_not_finite():
    lift = make_lift()
    depth = lift.depth.masked_fill(lift.cell < 0, torch.nan)
    assert bev_pool(depth, *lift.args[1:]).isfinite().all()


def test_all_points_in_one_cell():
    lift = make_lift(N=2, D=9, H=33, W=5, C=6, num_cells=100)
    assert_matches_the_reference(
        type(lift)(lift.depth, lift.features, torch.full_like(lift.cell, 57), 100)
    )


def test_same_input_gives_the_same_bits_on_any_number_of_threads():
    # Peer bug 13: atomic additions in any order.
    lift = make_lift(N=3, D=20, H=16, W=30, C=24, num_cells=3000)
    grad = torch.randn(3000, 24)
    before = torch.get_num_threads()
    results = []
    try:
        for threads in (1, 2, 3, 3):
            torch.set_num_threads(threads)
            results.append(pooled_with_gradients(bev_pool, lift, grad))
    finally:
        torch.set_num_threads(before)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other))


@settings(max_examples=25, deadline=None)
@given(lifts, st.randoms(use_true_random=False))
def test_order_of_cameras_does_not_matter(lift, random):
    order = list(range(len(lift.depth)))
    random.shuffle(order)
    shuffled = bev_pool(lift.depth[order], lift.features[order], lift.cell[order], lift.num_cells)
    torch.testing.assert_close(shuffled, bev_pool(*lift.args), rtol=1e-5, atol=1e-5)


@settings(max_examples=25, deadline=None)
@given(lifts, st.integers(0, 2**31))
def test_batch_is_the_same_as_its_samples_one_by_one(lift, seed):
    other = make_lift(*lift.depth.shape, lift.features.shape[-1], lift.num_cells, seed)
    G = lift.num_cells
    batch = bev_pool(
        torch.cat([lift.depth, other.depth]),
        torch.cat([lift.features, other.features]),
        torch.cat([lift.cell, other.cell + G * (other.cell >= 0)]),
        2 * G,
    )
    assert torch.equal(batch[:G], bev_pool(*lift.args))
    assert torch.equal(batch[G:], bev_pool(*other.args))


@settings(max_examples=25, deadline=None)
@given(lifts)
def test_linear_in_depth_and_in_features(lift):
    depth, features, cell, G = lift.to(torch.float64).args
    whole = bev_pool(depth, features, cell, G)
    torch.testing.assert_close(bev_pool(3 * depth, features, cell, G), 3 * whole)
    a, b = torch.rand_like(features), torch.rand_like(depth)
    torch.testing.assert_close(
        bev_pool(depth, features + a, cell, G), whole + bev_pool(depth, a, cell, G)
    )
    torch.testing.assert_close(
        bev_pool(depth + b, features, cell, G), whole + bev_pool(b, features, cell, G)
    )


def test_inputs_stay_as_they_were():
    lift = make_lift()
    copies = [tensor.clone() for tensor in lift.args[:3]]
    pooled_with_gradients(bev_pool, lift, torch.ones(12, 8))
    assert all(torch.equal(a, b) for a, b in zip(copies, lift.args))


def test_plan_made_before_gives_the_same():
    lift = make_lift(H=9)
    plan = plan_bev_pool(lift.cell, lift.num_cells)
    assert torch.equal(bev_pool(*lift.args, plan=plan), bev_pool(*lift.args))


@settings(max_examples=30, deadline=None)
@given(lifts)
def test_plan_on_a_device_is_the_plan_of_the_cpu(lift):
    expected = plan_cpu(lift.cell, lift.num_cells)
    for ours, want in zip(plan_on_device(lift.cell, lift.num_cells), expected):
        assert torch.equal(ours[: len(want)], want)


def test_plan_on_a_device_takes_a_cell_that_is_not_there_for_outside():
    cell = torch.tensor([0, 5, -7, 2]).view(1, 1, 4, 1)
    plan = plan_on_device(cell, 3)
    assert plan[0].tolist() == [0, 1, 1, 2]


def test_plan_on_a_device_never_waits_for_it():
    # Fake tensors have no values: reading one back, or a shape that hangs on one, is an error.
    with FakeTensorMode():
        plan = plan_on_device(torch.empty(2, 3, 5, 4, dtype=torch.int64), 12)
    assert [tuple(part.shape) for part in plan] == [(13,), (120, 2), (9,), (120, 4)]


def test_plan_lists_every_point_once():
    lift = make_lift(N=3, D=5, H=7, W=11)
    plan = plan_bev_pool(lift.cell, lift.num_cells)
    W, flat = lift.cell.shape[-1], lift.cell.flatten()
    seen = torch.full_like(flat, -1)
    for first, rows, cell, place in plan.by_column.tolist():
        assert plan.by_cell[place].tolist() == [first, rows]
        seen[first : first + rows * W : W] = cell
    assert torch.equal(seen, flat)


def test_layout_of_the_inputs_does_not_matter():
    lift = make_lift()
    strided = lift.features.movedim(-1, 1).contiguous().movedim(1, -1)
    depth = lift.depth.transpose(0, 1).contiguous().transpose(0, 1)
    assert torch.equal(bev_pool(depth, strided, *lift.args[2:]), bev_pool(*lift.args))


def test_depth_in_float32_with_features_in_half_precision():
    lift = make_lift()
    pooled = bev_pool(lift.depth, lift.features.bfloat16(), *lift.args[2:])
    assert pooled.dtype == torch.bfloat16
    torch.testing.assert_close(pooled.float(), bev_pool(*lift.args), rtol=0.02, atol=0.02)


def test_sums_are_rounded_to_bfloat16_as_torch_rounds():
    random = torch.Generator().manual_seed(0)
    bits = torch.randint(-(2**31), 2**31, (4000,), generator=random).int()
    bits[:4] = torch.tensor([0x3F808000, 0x3F818000, 0x7F7FFFFF, 0x7F800001])  # ties, greatest, NaN
    number = bits.view(torch.float32)
    ones = torch.ones(1, 4000, 1, 1, dtype=torch.bfloat16)
    pooled = bev_pool(number.view(1, 1, -1, 1), ones, torch.arange(4000).view(1, 1, -1, 1), 4000)
    torch.testing.assert_close(pooled.squeeze(1), number.bfloat16(), rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"features": torch.zeros(2, 5, 3, 8)}, "expected depth"),
        ({"cell": torch.zeros(2, 3, 5, 5, dtype=torch.int64)}, "expected depth"),
        ({"cell": torch.zeros(2, 3, 5, 4, dtype=torch.int32)}, "int64"),
        ({"cell": torch.full((2, 3, 5, 4), 12)}, "12 cells or above"),
        ({"cell": torch.full((2, 3, 5, 4), -2)}, "below -1"),
    ],
)
def test_what_does_not_fit_is_refused(change, message):
    lift = make_lift()
    named = dict(zip(("depth", "features", "cell", "num_cells"), lift.args))
    with pytest.raises(ValueError, match=message):
        bev_pool(**{**named, **change})


def test_plan_for_another_grid_is_refused():
    lift = make_lift()
    with pytest.raises(ValueError, match="make a new one"):
        bev_pool(*lift.args, plan=plan_bev_pool(lift.cell, lift.num_cells + 1))


def test_operators_are_registered_as_torch_wants_them():
    lift = make_lift()
    plan = plan_bev_pool(lift.cell, lift.num_cells)
    depth, features = lift.depth.requires_grad_(), lift.features.requires_grad_()
    torch.library.opcheck(_plan_bev_pool, (lift.cell, lift.num_cells))
    torch.library.opcheck(_bev_pool, (depth, features, *plan))
    grad = torch.rand(lift.num_cells, 8)
    torch.library.opcheck(_bev_pool_backward, (grad, depth.detach(), features.detach(), *plan[2:]))


class Pool(torch.nn.Module):
    def forward(self, depth, features, cell):
        return bev_pool(depth, features.sin(), cell, 12).cos()


def test_compiles_into_one_graph_with_gradients():
    lift = make_lift()
    features = lift.features.requires_grad_()
    torch._dynamo.reset()
    compiled = torch.compile(Pool(), backend="aot_eager", fullgraph=True)
    expected, ours = Pool()(lift.depth, features, lift.cell), compiled(*lift.args[:3])
    torch.testing.assert_close(ours, expected)
    gradients = [torch.autograd.grad(x.square().sum(), features)[0] for x in (ours, expected)]
    torch.testing.assert_close(*gradients)


def test_exports():
    lift = make_lift()
    program = torch.export.export(Pool(), lift.args[:3])
    other = make_lift(seed=1)
    torch.testing.assert_close(program.module()(*other.args[:3]), Pool()(*other.args[:3]))


def test_numpy_path_needs_no_torch():
    import subprocess
    import sys

    code = (
        "import sys, numpy as np\n"
        "from bevstack.kernels.numba_bev_pool import find_runs, pool_runs\n"
        "cell = np.array([0, 0, 1, -1]).reshape(1, 1, 4, 1)\n"
        "ones = np.ones((1, 1, 4, 1), np.float32)\n"
        "pooled = pool_runs(ones, ones.reshape(1, 4, 1, 1), find_runs(cell, 3))\n"
        "assert pooled.tolist() == [[2], [1], [0]] and 'torch' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_plan_is_small():
    lift = make_lift(N=1, D=4, H=32, W=8, num_cells=50)
    plan = plan_bev_pool(lift.cell, 50)
    assert sum(part.numel() for part in plan) < lift.cell.numel() * 3
    assert all(np.issubdtype(part.numpy().dtype, np.int32) for part in plan)
