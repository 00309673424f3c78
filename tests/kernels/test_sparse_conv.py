"""Sparse convolution on the CPU, against dense convolution and against its definition."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from voxel_cases import GEOMETRIES, SHAPE, make_voxels, voxels

from bevstack.kernels import neighbors, numba_sparse_conv, sparse_conv
from bevstack.kernels.sparse_conv import (
    _sparse_conv,
    _sparse_conv_backward,
    sparse_conv_cpu,
    sparse_conv_reference,
)

# Sums of up to 27 * C_in products of normals, halves rounded at the end alone.
TOLERANCE = {torch.float64: 1e-11, torch.float32: 1e-4, torch.float16: 5e-2, torch.bfloat16: 4e-1}


def normal(*shape, seed=0, dtype=torch.float32):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def dense_conv(features, weight, cells, table, geometry, batch_size=3):
    """(U, C_out) by torch's own convolution of the dense grid."""
    _, stride, padding, dilation, submanifold = geometry
    if submanifold:
        padding = [k // 2 * d for k, d in zip(geometry.kernel, dilation)]
    batch, z, y, x = cells.long().unbind(1)
    grid = features.new_zeros(batch_size, *SHAPE, features.shape[1])
    grid = grid.index_put((batch, z, y, x), features).movedim(-1, 1)
    out = F.conv3d(grid, weight.permute(4, 3, 0, 1, 2), None, stride, padding, dilation)
    batch, z, y, x = table.coordinates.long().unbind(1)
    return out.movedim(1, -1)[batch, z, y, x]


@settings(max_examples=100, deadline=None)
@given(voxels, st.sampled_from(list(GEOMETRIES.values())))
def test_equals_dense_convolution_forward_and_backward(cells, geometry):
    table = neighbors(cells, SHAPE, 3, *geometry)
    features = normal(len(cells), 3, dtype=torch.float64).requires_grad_()
    weight = normal(*geometry.kernel, 3, 5, seed=1, dtype=torch.float64).requires_grad_()
    ours = sparse_conv(features, weight, table)
    expected = dense_conv(features, weight, cells, table, geometry)
    close = {"rtol": 1e-10, "atol": 1e-10}
    torch.testing.assert_close(ours, expected, **close)
    upstream = normal(*ours.shape, seed=2, dtype=torch.float64)
    for got, want in zip(
        *(torch.autograd.grad(x, (features, weight), upstream) for x in (ours, expected))
    ):
        torch.testing.assert_close(got, want, **close)


def test_every_voxel_that_dense_convolution_reaches_is_an_output():
    cells = make_voxels()
    for geometry in GEOMETRIES.values():
        if geometry.submanifold:
            continue
        table = neighbors(cells, SHAPE, 3, *geometry)
        ones = torch.ones(len(cells), 1), torch.ones(*geometry.kernel, 1, 1)
        batch, z, y, x = cells.long().unbind(1)
        grid = torch.zeros(3, 1, *SHAPE)
        grid[batch, 0, z, y, x] = 1
        reached = F.conv3d(grid, ones[1].permute(4, 3, 0, 1, 2), None, *geometry[1:4])
        assert reached.shape[2:] == table.shape
        assert table.coordinates.tolist() == reached[:, 0].nonzero().tolist()
        counts = sparse_conv(*ones, table)
        assert torch.equal(counts[:, 0], reached[:, 0][reached[:, 0] > 0])


# Every width of a tile, with what is left over after it; the last are those of the encoder.
CHANNELS = [(1, 1), (3, 7), (5, 16), (16, 33), (7, 50), (32, 64), (70, 130), (128, 128)]


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize(("C_in", "C_out"), CHANNELS)
def test_matches_the_float64_reference(C_in, C_out, dtype):
    shape = (9, 17, 13)
    cells = make_voxels(0.3, 2, shape, seed=C_in)
    table = neighbors(cells, shape, 2, submanifold=True)
    inputs = [
        normal(len(cells), C_in, dtype=dtype),
        normal(3, 3, 3, C_in, C_out, seed=1, dtype=dtype) / C_in**0.5,
        normal(C_out, seed=2, dtype=dtype),
        normal(len(cells), C_out, seed=3, dtype=dtype),
    ]
    exact = [t.double().requires_grad_() for t in inputs]
    inputs = [t.requires_grad_() for t in inputs]
    features, weight, bias, residual = inputs
    ours = sparse_conv(features, weight, table, bias, residual, relu=True)
    expected = sparse_conv_reference(*exact[:2], table.rows, *exact[2:], relu=True)
    close = {"rtol": TOLERANCE[dtype], "atol": TOLERANCE[dtype]}
    assert ours.dtype == dtype
    torch.testing.assert_close(ours.double(), expected, **close)
    # The gradient of a clear ReLU: where rounding decides about zero, it may differ.
    upstream = normal(*ours.shape, seed=4, dtype=dtype) * (expected.abs() > 1).to(dtype)
    upstream = upstream * (ours > 0)
    got = torch.autograd.grad(ours, inputs, upstream)
    want = torch.autograd.grad(expected, exact, upstream.double())
    for a, b in zip(got, want):
        assert a.dtype == dtype
        scale = max(b.abs().max().item(), 1)
        torch.testing.assert_close(a.double() / scale, b / scale, **close)


def test_threads_change_no_bit():
    shape = (12, 40, 40)
    cells = make_voxels(0.3, 1, shape)
    rows = neighbors(cells, shape, 1, submanifold=True).rows.numpy()
    features, weight = normal(len(cells), 20).numpy(), normal(27, 20, 40, seed=1).numpy()
    one, two = (numba_sparse_conv.convolve(features, weight, rows, num_threads=n) for n in (1, 2))
    assert np.array_equal(one, two)
    grads = [numba_sparse_conv.weight_gradient(one, features, rows, n) for n in (1, 2)]
    assert np.array_equal(*grads)


def test_half_precision_sums_in_float32():
    # 2048 + 1 is 2048 in float16: a sum kept in half precision would lose the ones.
    cells = torch.tensor([[0, 0, 0, x] for x in range(3)], dtype=torch.int32)
    table = neighbors(cells, (1, 1, 3), 1, submanifold=True)
    features = torch.tensor([[2048.0], [1], [1]], dtype=torch.float16)
    ones = torch.ones(3, 3, 3, 1, 1, dtype=torch.float16)
    assert sparse_conv(features, ones, table)[1].item() == 2050


def test_not_a_number_comes_through():
    cells = torch.tensor([[0, 0, 0, 0], [0, 0, 0, 4]], dtype=torch.int32)
    table = neighbors(cells, (1, 1, 5), 1, submanifold=True)
    features = torch.tensor([[torch.nan], [-1.0]])
    out = sparse_conv(features, torch.ones(3, 3, 3, 1, 1), table, relu=True)
    assert out[0].isnan()
    assert out[1] == 0


@pytest.mark.parametrize("channels", [(0, 4), (4, 0), (4, 4)])
def test_no_voxel_and_no_channel_are_legal(channels):
    for cells in (make_voxels()[:0], make_voxels()):
        for geometry in GEOMETRIES.values():
            table = neighbors(cells, SHAPE, 3, *geometry)
            features = torch.ones(len(cells), channels[0], requires_grad=True)
            weight = torch.ones(*geometry.kernel, *channels, requires_grad=True)
            out = sparse_conv(features, weight, table)
            assert out.shape == (len(table.rows), channels[1])
            out.sum().backward()
            assert features.grad.shape == features.shape
            assert weight.grad.isfinite().all()


def operands():
    cells = make_voxels()
    table = neighbors(cells, SHAPE, 3, stride=(2, 2, 2))
    features, weight = normal(len(cells), 4), normal(27, 4, 6, seed=1)
    return table, features, weight, normal(6, seed=2), normal(len(table.rows), 6, seed=3)


def test_operators_are_registered_properly():
    table, features, weight, bias, residual = operands()
    inputs = [t.requires_grad_() for t in (features, weight, bias, residual)]
    back = table.by_input, None, None
    check = torch.library.opcheck
    check(_sparse_conv, (*inputs, True, table.rows, None, None, *back))
    check(_sparse_conv, (*inputs[:2], None, None, False, table.rows, None, None, *back))
    plain = features.detach(), weight.detach()
    check(_sparse_conv_backward, (residual.detach(), *plain, table.rows, None, None, *back))


class Layer(torch.nn.Module):
    def forward(self, features, weight, cells):
        table = neighbors(cells, SHAPE, 3, submanifold=True)
        return sparse_conv(features.sin(), weight, table, relu=True).cos()


def test_compiles_into_one_graph_with_gradients():
    cells = make_voxels()
    features, weight = normal(len(cells), 4).requires_grad_(), normal(27, 4, 6).requires_grad_()
    torch._dynamo.reset()
    compiled = torch.compile(Layer(), backend="aot_eager", fullgraph=True)
    expected, ours = Layer()(features, weight, cells), compiled(features, weight, cells)
    torch.testing.assert_close(ours, expected)
    for a, b in zip(*(torch.autograd.grad(x.sum(), (features, weight)) for x in (ours, expected))):
        torch.testing.assert_close(a, b)


class Exported(torch.nn.Module):
    """The form for export: the table is an input."""

    def __init__(self, weight, bias):
        super().__init__()
        self.weight, self.bias = weight, bias

    def forward(self, features, rows):
        return sparse_conv_reference(features, self.weight, rows, self.bias, features, relu=True)


def test_exports_to_standard_onnx_operators_for_any_number_of_voxels(tmp_path):
    onnx, onnxruntime = pytest.importorskip("onnx"), pytest.importorskip("onnxruntime")
    weight, bias = normal(3, 3, 3, 16, 16) / 20, normal(16, seed=1)
    cells = make_voxels(0.3)
    table = neighbors(cells, SHAPE, 3, submanifold=True)
    file = tmp_path / "conv.onnx"
    torch.onnx.export(
        Exported(weight, bias),
        (normal(len(cells), 16), table.rows),
        file,
        input_names=["features", "rows"],
        dynamic_axes={"features": {0: "voxels"}, "rows": {0: "voxels"}},
        dynamo=False,
    )
    graph = onnx.load(file)
    assert {node.domain for node in graph.graph.node} <= {"", "ai.onnx"}
    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    for seed in (1, 2):
        cells = make_voxels(0.3, seed=seed)
        table = neighbors(cells, SHAPE, 3, submanifold=True)
        features = normal(len(cells), 16, seed=seed)
        (out,) = session.run(None, {"features": features.numpy(), "rows": table.rows.numpy()})
        expected = sparse_conv_cpu(features, weight.flatten(0, 2), table.rows, bias, features, True)
        assert np.abs(out - expected.numpy()).max() < 4e-6


def test_what_does_not_fit_together_is_refused():
    table, features, weight, _, residual = operands()
    with pytest.raises(ValueError, match="do not fit"):
        sparse_conv(features[1:], weight, table)
    with pytest.raises(ValueError, match="do not fit"):
        sparse_conv(features, weight[1:], table)
    with pytest.raises(ValueError, match="residual"):
        sparse_conv(features, weight, table, residual=residual[1:])
