"""Sparse convolution on a GPU: checked against the definitions, timed over BEVFusion's encoder."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from bench_geometry import ten_sweeps
from sparse_conv_cost import Layer, encoder
from torch import Tensor

from bevstack.kernels import sparse_conv, voxelize
from bevstack.kernels.neighbors import NeighborTable, neighbors_reference
from bevstack.kernels.sparse_conv import sparse_conv_reference
from bevstack.kernels.triton_neighbors import (
    group_rows,
    invert_rows,
    strided_rows,
    submanifold_rows,
)
from bevstack.kernels.triton_sparse_conv import convolve, weight_grad

from .checks import DTYPES, Check, check, poisoned_memory
from .timing import Clock, Timing
from .voxels import POINT_RANGE, VOXEL_SIZE

GRID = (6, 9, 11)
CUBE, ONE, LINE = (3, 3, 3), (1, 1, 1), (3, 1, 1)
# Kernel, stride, padding, dilation, submanifold.
SHAPES = {
    "submanifold": (CUBE, ONE, ONE, ONE, True),
    "dilated": (CUBE, ONE, ONE, (1, 2, 2), True),
    "strided": (CUBE, (2, 2, 2), (0, 1, 1), ONE, False),
    "height": (LINE, (2, 1, 1), (0, 0, 0), ONE, False),
}
CHANNELS = ((5, 16), (16, 16), (33, 70))


def checks(device: str, data: Path, dtypes: Sequence[torch.dtype] = DTYPES) -> Iterator[Check]:
    """Tables of four kinds of layers, and products over them; on a GPU a real frame as well."""
    random = torch.Generator().manual_seed(0)
    cells = torch.cartesian_prod(*(torch.arange(n, dtype=torch.int32) for n in (2, *GRID)))
    # The interpreter is slow: less of all for it.
    share, widths = (0.2, CHANNELS) if device == "cuda" else (0.06, CHANNELS[-1:])
    coordinates = cells[torch.rand(len(cells), generator=random) < share]
    coordinates = coordinates[torch.randperm(len(coordinates), generator=random)]
    for case, layer in SHAPES.items():
        exact = neighbors_reference(coordinates, GRID, 2, *layer)
        yield from check_table(case, coordinates.to(device), exact, layer)
        rows = exact.rows.to(device)
        for channels in widths:
            for dtype in dtypes:
                name = f"{case}, {channels[0]}-{channels[1]}"
                yield from check_products(name, rows, len(coordinates), channels, dtype)
    if device == "cuda":
        for layer in encoder(*real_voxels(data)):
            yield from check_public(layer)


def check_table(
    case: str, coordinates: Tensor, exact: NeighborTable, layer: tuple
) -> Iterator[Check]:
    kernel, stride, padding, dilation, submanifold = layer
    with poisoned_memory():
        if submanifold:
            rows = submanifold_rows(coordinates, GRID, kernel, dilation)
        else:
            steps = exact.shape, 2, kernel, stride, padding, dilation
            outputs, rows = strided_rows(coordinates, *steps)
            want = exact.coordinates.to(outputs.device)
            yield check("neighbours, outputs", case, outputs.long(), want)
        back = invert_rows(rows, exact.num_inputs)
    yield check("neighbours, rows", case, rows.long(), exact.rows.to(rows.device))
    inverse = torch.full((exact.num_inputs, exact.rows.shape[1]), -1)
    output, offset = (exact.rows >= 0).nonzero(as_tuple=True)
    inverse[exact.rows[output, offset].long(), offset] = output
    yield check("neighbours, by input", case, back.long(), inverse.to(rows.device))


def check_products(
    case: str, rows: Tensor, num_inputs: int, channels: tuple[int, int], dtype: torch.dtype
) -> Iterator[Check]:
    """Forward with all that may follow it, and both gradients."""
    random = torch.Generator().manual_seed(1)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=random).to(rows.device, dtype)

    (U, K), (C_in, C_out) = rows.shape, channels
    features, weight = normal(num_inputs, C_in), normal(K, C_in, C_out)
    grad, bias, residual = normal(U, C_out), normal(C_out), normal(U, C_out)
    with poisoned_memory():
        slots, masks = group_rows(rows)
        plain = convolve(features, weight, slots, masks, U)
        full = convolve(features, weight, slots, masks, U, bias, residual, True)
        back = invert_rows(rows, num_inputs)
        swapped = weight.transpose(1, 2)
        to_features = convolve(grad, swapped, *group_rows(back), num_inputs)
        to_weight = weight_grad(features, grad, slots, masks)
    f, w = (t.double().requires_grad_() for t in (features, weight))
    exact = sparse_conv_reference(f, w, rows)
    exact_f, exact_w = torch.autograd.grad(exact, (f, w), grad.double())
    terms = bias.double(), residual.double(), True
    exact_full = sparse_conv_reference(f, w, rows, *terms).detach()
    yield check("sparse_conv", case, plain, exact.detach())
    yield check("sparse_conv, bias, residual, ReLU", case, full, exact_full)
    yield check("sparse_conv, gradient to features", case, to_features, exact_f)
    yield check("sparse_conv, gradient to weights", case, to_weight, exact_w)


def check_public(layer: Layer) -> Iterator[Check]:
    """A layer of the encoder at full size, as users call it; same bits twice."""
    C_in, C_out = layer.channels
    table, case = layer.table, f"{layer.name}, {len(layer.table.rows):,} voxels"
    random = torch.Generator(device="cuda").manual_seed(0)
    normal = {"generator": random, "device": "cuda"}
    features = torch.randn(table.num_inputs, C_in, **normal).requires_grad_()
    weight = torch.randn(table.rows.shape[1], C_in, C_out, **normal).requires_grad_()

    def run(function, *tensors: Tensor) -> tuple[Tensor, ...]:
        out = function(*tensors)
        return out.detach(), *torch.autograd.grad(out.sin().sum(), tensors)

    ours = run(lambda f, w: sparse_conv(f, w, table), features, weight)
    again = run(lambda f, w: sparse_conv(f, w, table), features, weight)
    wide = (t.detach().double().requires_grad_() for t in (features, weight))
    exact = run(lambda f, w: sparse_conv_reference(f, w, table.rows), *wide)
    for name, got, same, want in zip(("result", "to features", "to weights"), ours, again, exact):
        yield check(f"sparse_conv at full size, {name}", case, got, want)
        yield check(f"sparse_conv twice, {name}", case, (got != same).sum().long(), _zero(got))


def _zero(like: Tensor) -> Tensor:
    return torch.zeros((), dtype=torch.int64, device=like.device)


def real_voxels(data: Path) -> tuple[Tensor, tuple[int, int, int]]:
    """Voxels (V, 4) batch, z, y, x of a real frame, or of the benchmark's sweeps; their grid."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    file = data / "voxels" / "centerpoint_nuscenes.npz"
    if file.exists():
        coordinates = torch.from_numpy(np.load(file)["coords"].astype(np.int32))
    else:
        points = torch.from_numpy(ten_sweeps(data))
        batch = torch.zeros(len(points), dtype=torch.int64)
        voxels = voxelize(points.to(device), batch.to(device), 1, POINT_RANGE, VOXEL_SIZE)
        coordinates = voxels.coordinates[:, [0, 3, 2, 1]].int()
    return coordinates.to(device).contiguous(), (41, 1440, 1440)


def timings(clock: Clock, bandwidth: float, data: Path) -> Iterator[Timing]:
    """BEVFusion's whole encoder, convolutions and tables, beside gather and matrix product."""
    coordinates, shape = real_voxels(data)
    layers = list(encoder(coordinates, shape))
    device = coordinates.device
    for dtype in (torch.bfloat16, torch.float32):
        inputs = [_inputs(layer, dtype, device) for layer in layers]
        floor = 1e6 * sum(layer.memory_bytes for layer in layers) / bandwidth
        name = str(dtype).removeprefix("torch.")
        task = f"{sum(layer.count for layer in layers)} layers of BEVFusion's encoder, {name}"

        def each(one, inputs=inputs) -> None:
            for layer, tensors in zip(layers, inputs):
                for _ in range(layer.count):
                    one(*tensors, layer.table)

        yield clock.time(task, "gather + matrix product", lambda: each(_by_gather), floor)
        with torch.no_grad():
            yield clock.time(task, "ours, tables made before", lambda: each(sparse_conv), floor)
        for tensors in inputs:
            for tensor in tensors:
                tensor.requires_grad_()
        task += ", forward and backward"
        yield clock.time(task, "gather + matrix product", lambda: each(_both(_by_gather)))
        yield clock.time(task, "ours, tables made before", lambda: each(_both(sparse_conv)))
    task = "neighbour tables of BEVFusion's encoder"
    yield clock.time(
        task, "sort + search (submanifold, level 0 alone)", lambda: _by_search(coordinates, shape)
    )
    yield clock.time(task, "ours, all levels, grouped", lambda: _tables(coordinates, shape))


def _inputs(layer: Layer, dtype: torch.dtype, device: torch.device) -> tuple[Tensor, Tensor]:
    C_in, C_out = layer.channels
    weight = torch.randn(layer.table.rows.shape[1], C_in, C_out, device=device)
    features = torch.randn(layer.table.num_inputs, C_in, device=device)
    return features.to(dtype), weight.to(dtype)


def _by_gather(features: Tensor, weight: Tensor, table: NeighborTable) -> Tensor:
    return sparse_conv_reference(features, weight, table.rows)


def _both(forward):
    def run(features: Tensor, weight: Tensor, table: NeighborTable) -> None:
        out = forward(features, weight, table)
        torch.autograd.grad(out, (features, weight), torch.ones_like(out))

    return run


def _tables(coordinates: Tensor, shape: tuple[int, int, int]) -> None:
    for layer in encoder(coordinates, shape):
        layer.table.groups  # noqa: B018 made when asked for


def _by_search(coordinates: Tensor, shape: tuple[int, int, int]) -> Tensor:
    """The table of a submanifold 3x3x3 convolution in torch: sorted keys, searched."""
    scale = torch.tensor([0, shape[1] * shape[2], shape[2], 1], device=coordinates.device)
    offsets = torch.cartesian_prod(*[torch.arange(-1, 2, device=coordinates.device)] * 3)
    key, order = (coordinates.long() * scale).sum(1).sort()
    wanted = (coordinates.long() * scale).sum(1)[:, None] + (offsets * scale[1:]).sum(1)
    place = torch.searchsorted(key, wanted).clamp(max=len(key) - 1)
    return order[place].where(key[place] == wanted, -1)
