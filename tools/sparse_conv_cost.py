"""Count the operations and bytes of BEVFusion's voxel encoder on real voxels.

    python tools/sparse_conv_cost.py ../shared/data/voxels/centerpoint_nuscenes.npz

What a GPU has to do at least, for a time to be measured against: no GPU is needed to count. An
.npz file holds ``coords`` (V, 4) batch, z, y, x and ``spatial_shape`` Z, Y, X.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from bevstack.kernels.neighbors import NeighborTable, Triple, neighbors

ROWS = 64  # of a block, as in kernels/triton_neighbors.py
# NVIDIA's data sheet of the H200 (SXM): bfloat16 without sparsity, and memory.
PEAK_FLOPS, PEAK_BYTES = 989e12, 4.8e12


@dataclass(frozen=True)
class Layer:
    """Layers of one kind that share a table."""

    name: str
    table: NeighborTable
    channels: tuple[int, int]
    count: int
    bytes_per_value: int = 2

    @property
    def pairs(self) -> int:
        """Pairs of an output and an input under its kernel."""
        return int((self.table.rows >= 0).sum())

    @property
    def multiplied(self) -> int:
        """Rows that are multiplied in blocks, zeros among them."""
        return ROWS * blocks_with_offset(self.table.rows.numpy())

    @property
    def flops(self) -> int:
        """Of the pairs alone."""
        return 2 * self.pairs * self.channels[0] * self.channels[1] * self.count

    @property
    def memory_bytes(self) -> int:
        """Features, weights and result once each, and the table of slots."""
        U, K = self.table.rows.shape
        values = self.table.num_inputs * self.channels[0] + U * self.channels[1]
        weights = K * self.channels[0] * self.channels[1]
        return (self.bytes_per_value * (values + weights) + 4 * U * (1 + K)) * self.count

    @property
    def gathered_bytes(self) -> int:
        """What is read through the cache: the input of every pair."""
        return self.bytes_per_value * self.pairs * self.channels[0] * self.count

    @property
    def weight_bytes(self) -> int:
        """The same of the weights: each block reads those it multiplies by."""
        weight = self.bytes_per_value * self.channels[0] * self.channels[1]
        return self.multiplied // ROWS * weight * self.count


def blocks_with_offset(rows: np.ndarray) -> int:
    """Number of (block, offset) where some row of the block has the offset, K below 32.

    The order is that of ``triton_neighbors.group_rows``, written down again.
    """
    U, K = rows.shape
    offset, middle = np.arange(K), (K - 1) // 2
    digit = np.where(offset > middle, 2 * (offset - middle) - 1, 2 * (middle - offset))
    code = ((rows >= 0).astype(np.int64) << digit).sum(1)
    for shift in (1, 2, 4, 8, 16):
        code ^= code >> shift
    exists = (rows >= 0)[np.argsort(-code, kind="stable")]
    blocks = np.pad(exists, ((0, -U % ROWS), (0, 0))).reshape(-1, ROWS, K)
    return int(blocks.any(1).sum())


def encoder(coordinates: torch.Tensor, shape: Triple) -> Iterator[Layer]:
    """The layers of the voxel encoder of BEVFusion (Liu et al., ICRA 2023), one sample."""
    cube, two = (3, 3, 3), (2, 2, 2)
    paddings = ((1, 1, 1), (1, 1, 1), (0, 1, 1))
    for level, channels in enumerate((16, 32, 64, 128)):
        table = neighbors(coordinates, shape, 1, cube, submanifold=True)
        if level == 0:
            yield Layer("input", table, (5, 16), 1)
        yield Layer(f"level {level}", table, (channels, channels), 4)
        if level < 3:
            table = neighbors(coordinates, shape, 1, cube, two, paddings[level])
            yield Layer(f"down {level}", table, (channels, 2 * channels), 1)
            coordinates, shape = table.coordinates, table.shape
    table = neighbors(coordinates, shape, 1, (3, 1, 1), (2, 1, 1), (0, 0, 0))
    yield Layer("height", table, (128, 128), 1)


def _line(layer: Layer) -> str:
    return (
        f"| {layer.count} x {layer.name} {layer.channels[0]}-{layer.channels[1]} "
        f"| {len(layer.table.rows)} | {layer.pairs} | {layer.multiplied / layer.pairs:.2f} "
        f"| {layer.flops / 1e9:.2f} | {layer.memory_bytes / 1e6:.1f} "
        f"| {layer.gathered_bytes / 1e6:.1f} | {layer.weight_bytes / 1e6:.1f} |"
    )


def report(path: Path) -> str:
    """A table in Markdown, one row per kind of layer."""
    with np.load(path) as data:
        coordinates = torch.from_numpy(data["coords"].astype(np.int32))
        z, y, x = data["spatial_shape"].tolist()
    layers = list(encoder(coordinates, (z, y, x)))
    lines = [
        f"{path.name}: {len(coordinates):,} voxels, values of 2 bytes",
        "",
        "| layers | outputs | pairs | multiplied / pairs | GFLOP | memory MB "
        "| gathered MB | weights MB |",
        "|---|---:|---:|---:|---:|---:|---:|---:|",
    ]
    lines += [_line(layer) for layer in layers]
    flops = sum(layer.flops for layer in layers)
    multiplied = sum(layer.flops * layer.multiplied / layer.pairs for layer in layers)
    memory = sum(layer.memory_bytes for layer in layers)
    gathered = sum(layer.gathered_bytes for layer in layers)
    weights = sum(layer.weight_bytes for layer in layers)
    lines.append(
        f"| all | | | {multiplied / flops:.2f} | {flops / 1e9:.2f} | {memory / 1e6:.1f} "
        f"| {gathered / 1e6:.1f} | {weights / 1e6:.1f} |"
    )
    lines += [
        "",
        f"Least time on an H200, from its data sheet: {multiplied / PEAK_FLOPS * 1e6:.0f} us of "
        f"matrix products, {memory / PEAK_BYTES * 1e6:.0f} us of memory; measured: not yet.",
    ]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description="Count what BEVFusion's voxel encoder costs.")
    parser.add_argument("voxels", type=Path, nargs="+", help=".npz with coords and spatial_shape")
    for path in parser.parse_args().voxels:
        print(report(path), end="\n\n")


if __name__ == "__main__":
    main()
