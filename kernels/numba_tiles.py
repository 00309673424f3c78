"""Register tiles of a matrix product over listed rows, written as vector code for numba.

numba compiles plain loops well, but keeps the sums of a matrix product in memory. These two tiles
keep ``num_rows`` x ``width`` sums in vector registers; rows are found through lists, so that a
sparse convolution gathers and scatters nothing. LLVM makes the vectors fit any processor.

    product_tile:  out[targets[r]] += features[sources[r]] @ weight        for r in num_rows
    outer_tile:    out[r] += sum over i of features[sources[i], r] * grad[targets[i]]
"""

# llvmlite's builders are untyped.
# pyright: reportAttributeAccessIssue=false, reportArgumentType=false

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import llvmlite.binding
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

# Columns of a tile and rows of it, widest first; a tile's sums shall fit into the registers.
LANES = 16


def _has_avx512() -> bool:
    try:
        return bool(llvmlite.binding.get_host_cpu_features().get("avx512f"))
    except RuntimeError:  # LLVM does not know this processor
        return False


if _has_avx512():
    WIDE, MIDDLE, NARROW = (64, 6), (32, 8), (16, 8)
else:
    WIDE, MIDDLE, NARROW = (16, 6), (8, 6), (4, 6)

_INT = ir.IntType(64)
FAST = ("contract",)  # a product and a sum may become one instruction


class _Tile:
    """Addresses and sums of one tile while its code is written."""

    def __init__(self, builder: Any, real: Any, num_rows: int, width: int):
        self.builder, self.real, self.num_rows = builder, real, num_rows
        self.lanes = min(width, LANES)
        self.vector = ir.VectorType(real, self.lanes)
        self.parts = width // self.lanes
        self.size = 8 if isinstance(real, ir.DoubleType) else 4

    def at(self, address: Any, elements: Any) -> Any:
        """The address so many numbers further on."""
        return self.builder.add(address, self.builder.mul(elements, _INT(self.size)))

    def listed(self, rows: Any, index: Any) -> Any:
        """Entry of a list of int64."""
        place = self.builder.add(rows, self.builder.mul(index, _INT(8)))
        return self.builder.load(self.builder.inttoptr(place, _INT.as_pointer()))

    def load(self, address: Any) -> list[Any]:
        """The vectors of one row of the tile."""
        return [self.builder.load(p, align=self.size) for p in self._pointers(address)]

    def store(self, values: list[Any], address: Any) -> None:
        for value, pointer in zip(values, self._pointers(address)):
            self.builder.store(value, pointer, align=self.size)

    def _pointers(self, address: Any) -> list[Any]:
        step = self.lanes * self.size
        kind = self.vector.as_pointer()
        places = [self.builder.add(address, _INT(n * step)) for n in range(self.parts)]
        return [self.builder.inttoptr(place, kind) for place in places]

    def everywhere(self, address: Any) -> Any:
        """One number in every lane."""
        number = self.builder.load(self.builder.inttoptr(address, self.real.as_pointer()))
        first = self.builder.insert_element(self.vector(ir.Undefined), number, ir.IntType(32)(0))
        zeros = ir.Constant(ir.VectorType(ir.IntType(32), self.lanes), [0] * self.lanes)
        return self.builder.shuffle_vector(first, self.vector(ir.Undefined), zeros)

    def accumulate(self, count: Any, rows: list[Any], terms: Callable) -> None:
        """Add ``terms(i)``, a row of vectors and a number per tile row, for i below count."""
        builder = self.builder
        sums = [[cgutils.alloca_once_value(builder, v) for v in self.load(row)] for row in rows]
        with cgutils.for_range(builder, count, intp=_INT) as loop:
            vectors, numbers = terms(loop.index)
            for own, number in zip(sums, numbers):
                for place, vector in zip(own, vectors):
                    product = builder.fmul(number, vector, flags=FAST)
                    builder.store(builder.fadd(builder.load(place), product, flags=FAST), place)
        for own, row in zip(sums, rows):
            self.store([builder.load(place) for place in own], row)


def _real(kind: Any) -> Any:
    return ir.DoubleType() if kind == types.float64 else ir.FloatType()


def product_tile(num_rows: int, width: int) -> Any:
    """The tile ``out[targets[r], :width] += features[sources[r]] @ weight``, weight (C, width)."""

    @intrinsic
    def tile(
        typing, kind, features, weight, out, sources, targets, first, channels, stride
    ):  # addresses, all int64; lists begin at `first`; stride: columns of out
        def code(context, builder, signature, args):
            _, features, weight, out, sources, targets, first, channels, stride = args
            own = _Tile(builder, _real(signature.args[0]), num_rows, width)
            places = [builder.add(first, _INT(r)) for r in range(num_rows)]
            inputs = [
                own.at(features, builder.mul(own.listed(sources, p), channels)) for p in places
            ]
            rows = [own.at(out, builder.mul(own.listed(targets, p), stride)) for p in places]

            def terms(c):
                vectors = own.load(own.at(weight, builder.mul(c, _INT(width))))
                return vectors, [own.everywhere(own.at(row, c)) for row in inputs]

            own.accumulate(channels, rows, terms)
            return context.get_dummy_value()

        return types.void(kind, *[types.int64] * 8), code

    return tile


def outer_tile(num_rows: int, width: int) -> Any:
    """The tile ``out[r, :width] += sum of features[sources[i], r] * grad[targets[i], :width]``."""

    @intrinsic
    def tile(
        typing, kind, features, grad, out, sources, targets, count, channels, stride
    ):  # addresses, all int64; channels of features; stride: columns of grad and out
        def code(context, builder, signature, args):
            _, features, grad, out, sources, targets, count, channels, stride = args
            own = _Tile(builder, _real(signature.args[0]), num_rows, width)
            rows = [own.at(out, builder.mul(_INT(r), stride)) for r in range(num_rows)]

            def terms(i):
                source = own.at(features, builder.mul(own.listed(sources, i), channels))
                target = own.at(grad, builder.mul(own.listed(targets, i), stride))
                numbers = [own.everywhere(own.at(source, _INT(r))) for r in range(num_rows)]
                return own.load(target), numbers

            own.accumulate(count, rows, terms)
            return context.get_dummy_value()

        return types.void(kind, *[types.int64] * 8), code

    return tile
