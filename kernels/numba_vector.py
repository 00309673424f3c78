"""Eight numbers in one instruction, where the compiler does not see that it could."""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import extending, types

EIGHT = 8
intrinsic: Any = extending.intrinsic  # takes the first parameter away


@intrinsic
def add_eight(typingctx, total, i, values, j):
    """total[i : i + 8] += values[j : j + 8] of flat float arrays. Nobody checks the bounds."""

    def codegen(context, builder, signature, args):
        into, align = _eight(context, builder, total, args[0], args[1])
        added, _ = _eight(context, builder, values, args[2], args[3])
        both = builder.load(into, align=align), builder.load(added, align=align)
        builder.store(builder.fadd(*both), into, align=align)
        return context.get_dummy_value()

    return types.void(total, types.int64, values, types.int64), codegen


@intrinsic
def scale_eight(typingctx, result, i, values, j, factor):
    """result[i : i + 8] = values[j : j + 8] * factor of flat float arrays, bounds as above."""

    def codegen(context, builder, signature, args):
        into, align = _eight(context, builder, result, args[0], args[1])
        scaled, _ = _eight(context, builder, values, args[2], args[3])
        number, lane = ir.VectorType(args[4].type, EIGHT), ir.IntType(32)
        first = builder.insert_element(ir.Constant(number, ir.Undefined), args[4], lane(0))
        everywhere = ir.Constant(ir.VectorType(lane, EIGHT), [0] * EIGHT)
        factors = builder.shuffle_vector(first, first, everywhere)
        builder.store(builder.fmul(builder.load(scaled, align=align), factors), into, align=align)
        return context.get_dummy_value()

    return types.void(result, types.int64, values, types.int64, result.dtype), codegen


def _eight(context, builder, kind, array, index):
    """Where array[index : index + 8] lies, and its alignment in bytes."""
    number = context.get_value_type(kind.dtype)
    place = builder.gep(context.make_array(kind)(context, builder, array).data, [index])
    return (
        builder.bitcast(place, ir.VectorType(number, EIGHT).as_pointer()),
        context.get_abi_sizeof(number),
    )
