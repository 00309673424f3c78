"""Triton kernels of neighbour tables and sparse convolution, in Triton's interpreter.

The tests of this file need TRITON_INTERPRET=1 when the kernels are defined, so the first one runs
the file once more in a process of its own; there the others are no longer left out. Fresh memory is
filled with NaN (integers with their maximum), so that a forgotten store shows.
"""

import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from kernel_cases import load_tool

pytest.importorskip("triton")
import triton.language as tl
from triton.runtime import interpreter

from bevstack.kernels import triton_neighbors, triton_sparse_conv
from bevstack.kernels.neighbors import neighbors_reference
from bevstack.kernels.sparse_conv import sparse_conv_backward_triton, sparse_conv_triton
from bevstack.kernels.triton_neighbors import ROWS

INTERPRETED = isinstance(triton_sparse_conv.conv_kernel, interpreter.InterpretedFunction)
interpreted = pytest.mark.skipif(not INTERPRETED, reason="run by the first test of this file")

# Sums of up to some hundred products of normal numbers, the result rounded once.
TOLERANCE = {torch.float32: 2e-5, torch.float16: 2e-2, torch.bfloat16: 1e-1}
DTYPES = list(TOLERANCE)


@pytest.mark.slow
@pytest.mark.skipif(INTERPRETED, reason="this is the process that it starts")
def test_kernels_in_the_interpreter():
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-n", "0", __file__],
        env={**os.environ, "TRITON_INTERPRET": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert " passed" in done.stdout or "100%" in done.stdout


@pytest.fixture(autouse=True, scope="module")
def _poisoned_memory():
    if not INTERPRETED:
        yield
        return
    with pytest.MonkeyPatch.context() as patch:
        # The interpreter multiplies the bits of bfloat16 as integers; its values are exact in
        # float32, and so are their products.
        patch.setitem(triton_sparse_conv.DOT_TYPES, torch.bfloat16, tl.float32)
        # Triton 3.6 makes a loop's bound of an array of one element, as numpy 2.4 no longer does.
        prepare = interpreter._patch_lang_tensor

        def prepare_with_index(tensor, *scope):
            prepare(tensor, *scope)
            tensor.__index__ = lambda self: int(self.handle.data.squeeze())

        patch.setattr(interpreter, "_patch_lang_tensor", prepare_with_index)
        patch.setattr(torch.utils.deterministic, "fill_uninitialized_memory", True)
        torch.use_deterministic_algorithms(True)
        assert torch.empty(3).isnan().all()
        yield
        torch.use_deterministic_algorithms(False)


# --- Neighbour tables -----------------------------------------------------------------------------


def voxels(shape, batch_size, count, seed=0):
    """Random unique coordinates (count, 4) in random order."""
    random = np.random.default_rng(seed)
    cell = random.choice(batch_size * np.prod(shape), count, replace=False)
    place = np.stack(np.unravel_index(cell, (batch_size, *shape)), 1)
    return torch.from_numpy(place.astype(np.int32))


def table_by_dictionary(coordinates, out_shape, kernel, stride, padding, dilation, outputs=None):
    """Outputs and rows by the definition, voxel by voxel."""
    row_of = {tuple(cell): v for v, cell in enumerate(coordinates.tolist())}
    offsets = list(np.ndindex(*kernel))
    steps = np.array(stride), np.array(padding), np.array(dilation)

    def under(cell, offset):
        place = np.array(cell[1:]) * steps[0] - steps[1] + np.array(offset) * steps[2]
        return row_of.get((cell[0], *place.tolist()), -1)

    if outputs is None:
        batches = range(1 + max((cell[0] for cell in row_of), default=-1))
        cells = [(b, *place) for b in batches for place in np.ndindex(*out_shape)]
        outputs = [cell for cell in cells if any(under(cell, k) >= 0 for k in offsets)]
    rows = [[under(cell, k) for k in offsets] for cell in outputs]
    table = torch.tensor(rows, dtype=torch.int32).view(-1, len(offsets))
    return torch.tensor(outputs, dtype=torch.int32).view(-1, 4), table


@interpreted
@pytest.mark.parametrize("kernel", [(1, 1, 1), (3, 3, 3), (3, 1, 1), (1, 5, 3)], ids=str)
@pytest.mark.parametrize("dilation", [(1, 1, 1), (1, 2, 3)], ids=str)
def test_submanifold_rows(kernel, dilation):
    shape, coordinates = (4, 5, 6), voxels((4, 5, 6), batch_size=2, count=90)
    centre = tuple(k // 2 * d for k, d in zip(kernel, dilation))
    _, expected = table_by_dictionary(
        *(coordinates, shape, kernel, (1, 1, 1), centre, dilation, coordinates.tolist())
    )
    rows = triton_neighbors.submanifold_rows(coordinates, shape, kernel, dilation)
    assert torch.equal(rows, expected)


@interpreted
@pytest.mark.parametrize("count", [1, 2, 63, 120])
def test_hash_table_with_hardly_a_free_place(count):
    # Almost every key is displaced, and looked for past the end of the table and from its start.
    coordinates, shape, kernel = voxels((4, 5, 6), 1, count), (4, 5, 6), (3, 3, 3)
    capacity = 1 << count.bit_length()
    once, again = (
        triton_neighbors.submanifold_rows(coordinates, shape, kernel, (1, 1, 1), room)
        for room in (capacity, 16 * capacity)
    )
    assert torch.equal(once, again)
    assert torch.equal(once[:, 13], torch.arange(count).int())


@interpreted
def test_keys_past_32_bits():
    shape = 1000, 40_000, 50_000
    coordinates = torch.tensor([[3, 999, 39_999, 49_998], [3, 999, 39_999, 49_999], [0, 0, 0, 0]])
    rows = triton_neighbors.submanifold_rows(coordinates.int(), shape, (1, 1, 3), (1, 1, 1))
    assert rows.tolist() == [[-1, 0, 1], [0, 1, -1], [-1, 2, -1]]


GEOMETRIES = {  # kernel, stride, padding, dilation
    "encoder": ((3, 3, 3), (2, 2, 2), (1, 1, 1), (1, 1, 1)),
    "encoder, last": ((3, 3, 3), (2, 2, 2), (0, 1, 1), (1, 1, 1)),
    "height": ((3, 1, 1), (2, 1, 1), (0, 0, 0), (1, 1, 1)),
    "stride 1": ((3, 3, 3), (1, 1, 1), (1, 1, 1), (1, 1, 1)),
    "even kernel": ((2, 4, 2), (2, 3, 1), (0, 1, 0), (1, 1, 1)),
    "dilated": ((3, 2, 3), (1, 2, 2), (2, 1, 0), (2, 3, 1)),
    "gaps": ((1, 1, 1), (2, 2, 2), (0, 0, 0), (1, 1, 1)),
}


def out_shape_of(shape, kernel, stride, padding, dilation):
    steps = zip(shape, kernel, stride, padding, dilation)
    return tuple((n + 2 * p - d * (k - 1) - 1) // s + 1 for n, k, s, p, d in steps)


@interpreted
@pytest.mark.parametrize("geometry", GEOMETRIES.values(), ids=GEOMETRIES)
@pytest.mark.parametrize("count", [1, 70])
def test_strided_rows(geometry, count):
    shape = 5, 6, 7
    coordinates, out_shape = voxels(shape, 2, count), out_shape_of(shape, *geometry)
    expected = table_by_dictionary(coordinates, out_shape, *geometry)
    outputs, rows = triton_neighbors.strided_rows(coordinates, out_shape, 2, *geometry)
    assert torch.equal(outputs, expected[0])  # and so in ascending order
    assert torch.equal(rows, expected[1])
    by_input = triton_neighbors.invert_rows(rows, count)
    u, k = (rows >= 0).nonzero(as_tuple=True)
    inverse = torch.full_like(by_input, -1)
    inverse[rows[u, k].long(), k] = u.int()
    assert torch.equal(by_input, inverse)


@interpreted
@settings(max_examples=10, deadline=None)
@given(
    shape=st.tuples(*3 * [st.integers(1, 6)]),
    batch_size=st.integers(1, 3),
    share=st.floats(0, 1),
    kernel=st.tuples(*3 * [st.integers(1, 3)]),
    stride=st.tuples(*3 * [st.integers(1, 3)]),
    padding=st.tuples(*3 * [st.integers(0, 2)]),
    dilation=st.tuples(*3 * [st.integers(1, 2)]),
    seed=st.integers(0, 99),
)
def test_tables_of_any_geometry(shape, batch_size, share, kernel, stride, padding, dilation, seed):
    coordinates = voxels(shape, batch_size, int(share * batch_size * np.prod(shape)), seed)
    odd = tuple(k | 1 for k in kernel)
    expected = neighbors_reference(
        coordinates, shape, batch_size, odd, dilation=dilation, submanifold=True
    )
    rows = triton_neighbors.submanifold_rows(coordinates, shape, odd, dilation)
    assert torch.equal(rows, expected.rows)
    geometry = kernel, stride, padding, dilation
    out_shape = out_shape_of(shape, *geometry)
    assume(min(out_shape) > 0)
    expected = neighbors_reference(coordinates, shape, batch_size, *geometry)
    outputs, rows = triton_neighbors.strided_rows(coordinates, out_shape, batch_size, *geometry)
    assert torch.equal(outputs, expected.coordinates)
    assert torch.equal(rows, expected.rows)


@interpreted
def test_no_voxel():
    none = torch.empty(0, 4, dtype=torch.int32)
    triple = (3, 3, 3)
    assert triton_neighbors.submanifold_rows(none, triple, triple, triple).shape == (0, 27)
    outputs, rows = triton_neighbors.strided_rows(none, *(triple, 1, triple, *3 * [(1, 1, 1)]))
    assert (outputs.shape, rows.shape) == ((0, 4), (0, 27))
    assert triton_neighbors.invert_rows(rows, 5).tolist() == [[-1] * 27] * 5
    slots, masks = triton_neighbors.group_rows(rows)
    assert (slots.shape, masks.shape) == ((28, 0), (0, 1))


# --- Grouping -------------------------------------------------------------------------------------


def random_rows(U, K, V, share, seed=0):
    """Rows (U, K) with a share of them there; an input serves an output at most per offset."""
    random = torch.Generator().manual_seed(seed)
    columns = [torch.randperm(max(U, V), generator=random)[:U] for _ in range(K)]
    rows = torch.stack(columns, 1) if K else torch.empty(U, 0)
    there = (rows < V) & (torch.rand(U, K, generator=random) < share)
    return rows.where(there, -1).int()


@interpreted
@settings(max_examples=8, deadline=None)
@given(
    U=st.integers(1, 3 * ROWS),
    K=st.sampled_from([1, 3, 27, 31, 32, 33, 64, 75]),
    share=st.sampled_from([0.0, 0.05, 0.5, 1.0]),
    seed=st.integers(0, 99),
)
def test_grouping_keeps_every_row_and_masks_say_what_occurs(U, K, share, seed):
    rows = random_rows(U, K, V=200, share=share, seed=seed)
    slots, masks = triton_neighbors.group_rows(rows)
    order, there = slots[0], slots[0] >= 0
    assert slots.shape[1] % ROWS == 0
    assert torch.equal(order[there].sort().values, torch.arange(U).int())
    assert torch.equal(slots[1:, there].t(), rows[order[there].long()])
    assert (slots[:, ~there] == -1).all()
    occurs = (slots[1:].view(K, -1, ROWS) >= 0).any(2).t()
    offset = torch.arange(K)
    assert torch.equal((masks[:, offset // 32] >> (offset % 32) & 1).bool(), occurs)


@interpreted
def test_outputs_of_one_pattern_stand_together():
    patterns = torch.rand(5, 27, generator=torch.Generator().manual_seed(0)) < 0.3
    rows = torch.where(patterns[torch.arange(320) % 5], 0, -1).int()
    slots, masks = triton_neighbors.group_rows(rows)
    changes = (slots[1:, 1:] != slots[1:, :-1]).any(0).sum()
    assert changes == 4
    # 64 of each: every block has one pattern, and skips all other offsets.
    found = {tuple(((mask >> torch.arange(27)) & 1).tolist()) for mask in masks[:, 0]}
    assert found == {tuple(pattern) for pattern in patterns.int().tolist()}


@interpreted
@pytest.mark.parametrize("K", [3, 27, 31])
def test_blocks_are_as_full_as_the_cost_tool_counts(K):
    rows = random_rows(900, K, V=800, share=0.05)
    _, masks = triton_neighbors.group_rows(rows)
    occurs = (masks >> torch.arange(K)) & 1
    cost = load_tool("sparse_conv_cost")
    assert cost.ROWS == ROWS
    assert cost.blocks_with_offset(rows.numpy()) == occurs.sum()


# --- Convolution ----------------------------------------------------------------------------------


def convolution_in_float64(features, weight, rows, bias=None, residual=None, relu=False):
    total = torch.zeros(rows.shape[0], weight.shape[2], dtype=torch.float64)
    for k in range(rows.shape[1]):
        there = (rows[:, k] >= 0).nonzero().squeeze(1)
        product = features.double()[rows[there, k].long()] @ weight[k].double()
        total = total.index_add(0, there, product)
    total = total if bias is None else total + bias.double()
    total = total if residual is None else total + residual.double()
    return total.relu() if relu else total


SIZES = {  # U, K, V, share, C_in, C_out
    "points": (90, 27, 80, 0.2, 5, 16),
    "one of everything": (1, 1, 1, 1.0, 1, 1),
    "encoder": (70, 27, 75, 0.3, 16, 32),
    "height": (70, 3, 65, 0.6, 33, 16),
    "channels in blocks": (66, 2, 70, 0.7, 130, 140),
    "two words of offsets": (65, 40, 50, 0.1, 4, 7),
    "no neighbour": (80, 27, 20, 0.0, 5, 6),
    "all neighbours": (64, 27, 64, 1.0, 8, 8),
    "no channel": (10, 3, 9, 0.5, 0, 4),
    "no result": (10, 3, 9, 0.5, 4, 0),
    "no output": (0, 3, 9, 0.5, 4, 5),
    "no input": (10, 3, 0, 0.5, 4, 5),
}


@pytest.fixture(params=SIZES.values(), ids=list(SIZES))
def sizes(request):
    return request.param


def layer(sizes, dtype):
    U, K, V, share, C_in, C_out = sizes
    random = torch.Generator().manual_seed(1)
    draw = (torch.randn(*size, generator=random) for size in ((V, C_in), (K, C_in, C_out)))
    features, weight = (tensor.to(dtype) for tensor in draw)
    grad = torch.randn(U, C_out, generator=random).to(dtype)
    return features, weight / max(K * C_in, 1) ** 0.5, random_rows(U, K, V, share), grad


def assert_close(got, expected, dtype):
    torch.testing.assert_close(got.double(), expected, rtol=TOLERANCE[dtype], atol=TOLERANCE[dtype])


@interpreted
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_convolution_and_both_gradients(sizes, dtype):
    features, weight, rows, grad = layer(sizes, dtype)
    exact = features.double().requires_grad_(), weight.double().requires_grad_()
    expected = convolution_in_float64(*exact, rows)
    grads = torch.autograd.grad(expected, exact, grad.double())
    groups = triton_neighbors.group_rows(rows)
    inverse = triton_neighbors.invert_rows(rows, features.shape[0])
    by_input = triton_neighbors.group_rows(inverse)
    out = sparse_conv_triton(features, weight, rows, *groups)
    got = sparse_conv_backward_triton(*(grad, features, weight, rows, *groups, inverse, *by_input))
    assert {tensor.dtype for tensor in (out, *got)} == {dtype}
    assert_close(out, expected, dtype)
    assert_close(got[0], grads[0], dtype)
    assert_close(got[1], grads[1], dtype)
    # Sums over all rows, in float32 whatever the dtype of the factors.
    grad_weight = triton_sparse_conv.weight_grad(features, grad, *groups)
    torch.testing.assert_close(grad_weight.double(), grads[1], rtol=1e-5, atol=1e-4)


@interpreted
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("parts", ["bias", "residual", "relu", "bias residual relu"])
def test_epilogue(parts, dtype):
    features, weight, rows, residual = layer(SIZES["points"], dtype)
    extras = {
        "bias": torch.linspace(-1, 1, weight.shape[2]) if "bias" in parts else None,
        "residual": residual if "residual" in parts else None,
        "relu": "relu" in parts,
    }
    groups = triton_neighbors.group_rows(rows)
    out = triton_sparse_conv.convolve(features, weight, *groups, rows.shape[0], **extras)
    assert_close(out, convolution_in_float64(features, weight, rows, **extras), dtype)


@interpreted
def test_what_is_not_a_number_passes_the_relu():
    features = torch.tensor([[torch.nan], [-1.0], [2.0]])
    groups = triton_neighbors.group_rows(torch.arange(3).int().view(3, 1))
    out = triton_sparse_conv.convolve(features, torch.ones(1, 1, 1), *groups, 3, relu=True)
    assert out[0].isnan()
    assert out[1:].tolist() == [[0], [2]]


@interpreted
def test_an_offset_that_no_row_of_a_block_has_is_not_multiplied():
    # 0 * infinity would show: all rows have offset 0 alone, and all other weights are infinite.
    rows = torch.full((100, 27), -1, dtype=torch.int32)
    rows[:, 0] = torch.arange(100).int()
    weight = torch.full((27, 4, 4), torch.inf)
    weight[0] = torch.eye(4)
    features = torch.randn(100, 4, generator=torch.Generator().manual_seed(0))
    groups = triton_neighbors.group_rows(rows)
    assert torch.equal(triton_sparse_conv.convolve(features, weight, *groups, 100), features)


@interpreted
def test_gradient_to_the_weights_is_one_sum_however_it_is_split(monkeypatch):
    features, weight, rows, grad = layer((700, 3, 600, 0.4, 5, 6), torch.float32)
    groups = triton_neighbors.group_rows(rows)
    expected = torch.zeros(weight.shape, dtype=torch.float64)
    for k in range(3):
        there = rows[:, k] >= 0
        expected[k] = features.double()[rows[there, k].long()].t() @ grad.double()[there]
    for least in (1, 3, 100):
        monkeypatch.setattr(triton_sparse_conv, "BLOCKS_PER_SPLIT", least)
        got = triton_sparse_conv.weight_grad(features, grad, *groups)
        torch.testing.assert_close(got.double(), expected, rtol=1e-5, atol=1e-4)


@interpreted
def test_refuses_float64():
    features, weight, rows, _ = layer(SIZES["points"], torch.float32)
    groups = triton_neighbors.group_rows(rows)
    with pytest.raises(ValueError, match="float32, float16 or bfloat16"):
        triton_sparse_conv.convolve(features.double(), weight, *groups, rows.shape[0])
    with pytest.raises(ValueError, match="float32, float16 or bfloat16"):
        triton_sparse_conv.weight_grad(features.double(), features, *groups)


@interpreted
def test_refuses_two_devices():
    features, weight, rows, _ = layer(SIZES["points"], torch.float32)
    groups = triton_neighbors.group_rows(rows)
    with pytest.raises(ValueError, match="move them together"):
        triton_sparse_conv.convolve(features, weight.to("meta"), *groups, rows.shape[0])


@interpreted
def test_tf32_only_where_torch_allows_it():
    precision = triton_sparse_conv.dot_precision
    before = torch.backends.cuda.matmul.fp32_precision
    try:
        torch.backends.cuda.matmul.fp32_precision = "ieee"
        assert precision(torch.float32) == "ieee"
        torch.backends.cuda.matmul.fp32_precision = "tf32"
        assert precision(torch.float32) == "tf32"
        assert precision(torch.bfloat16) == "ieee"
    finally:
        torch.backends.cuda.matmul.fp32_precision = before
