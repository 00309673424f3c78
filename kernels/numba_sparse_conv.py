"""The parts of a sparse convolution on the CPU that the BLAS does not do, without torch.

A block holds the inputs of some outputs side by side, for the offsets that occur among them:

    block[i, m] = features[rows[order[i], offsets[m]]], zeros where there is no neighbour
"""

from __future__ import annotations

from .threads import compiled


@compiled
def gather_block(features, rows, order, offsets, block):
    """Fill ``block`` (n, M * C) from features (V, C), rows (U, K), order (n,), offsets (M,)."""
    channels = features.shape[1]
    for i in range(len(order)):
        u = order[i]
        place = 0
        for k in offsets:
            v = rows[u, k]
            if v >= 0:
                for c in range(channels):
                    block[i, place + c] = features[v, c]
            else:
                for c in range(channels):
                    block[i, place + c] = 0
            place += channels


@compiled
def gather_rows(features, order, block):
    """``block[i] = features[order[i]]``, (n, C)."""
    for i in range(len(order)):
        u = order[i]
        for c in range(features.shape[1]):
            block[i, c] = features[u, c]


@compiled
def add_rows(product, order, out):
    """``out[order[i]] += product[i]``, (n, C); every output once."""
    for i in range(len(order)):
        u = order[i]
        for c in range(product.shape[1]):
            out[u, c] += product[i, c]


@compiled
def finish_rows(out, bias, residual, relu, low, high):
    """Add bias (C,) and residual (U, C), each or none of it, and apply the ReLU, in place."""
    for u in range(low, high):
        for c in range(len(bias)):
            out[u, c] += bias[c]
        for c in range(residual.shape[1]):
            out[u, c] += residual[u, c]
        if relu:
            for c in range(out.shape[1]):
                value = out[u, c]
                out[u, c] = 0 if value < 0 else value  # NaN stays
