"""How the constants of an ONNX graph are stored: fewer bytes, the same or nearly the same numbers.

All of it is undone by the constant folding that a runtime does while it loads, so that the graph
computes with the constants it had.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

LEAST_SIZE = 1024  # numbers; a smaller tensor gains nothing


def factor_positions(model: Any) -> None:
    """Store the sampling positions of ``GridSample`` as one row and one column, in place.

    Positions on a rectangular grid are (1, X, Y, 2); the tracer writes out all of them.
    """
    from onnx import helper
    from onnx.numpy_helper import from_array, to_array

    wanted = {node.input[1] for node in model.graph.node if node.op_type == "GridSample"}
    nodes = list(model.graph.node)
    for i, node in enumerate(model.graph.node):
        if node.op_type != "Constant" or node.output[0] not in wanted:
            continue
        name, positions = node.output[0], to_array(node.attribute[0].t)
        parts = positions[:, :1, :, :1], positions[:, :, :1, 1:]  # along the row, down the column
        whole = [np.broadcast_to(part, (*positions.shape[:3], 1)) for part in parts]
        if not np.array_equal(np.concatenate(whole, -1), positions):
            continue
        shape = from_array(np.array([*positions.shape[:3], 1]), f"{name}_shape")
        model.graph.initializer.append(shape)
        made = []
        for kind, part in zip(("row", "column"), parts):
            model.graph.initializer.append(from_array(part.copy(), f"{name}_{kind}"))
            inputs = [f"{name}_{kind}", shape.name]
            made.append(helper.make_node("Expand", inputs, [f"{name}_{kind}_all"]))
        columns = [f"{name}_row_all", f"{name}_column_all"]
        made.append(helper.make_node("Concat", columns, [name], axis=3))
        nodes[i] = made
    _replace_nodes(model, nodes)


def weights_of(model: Any) -> dict[str, int]:
    """Float weights of convolutions and matrix products, and the axis of their output channels."""
    from onnx import TensorProto

    floats = {t.name for t in model.graph.initializer if t.data_type == TensorProto.FLOAT}
    found = {}
    for node in model.graph.node:
        if node.op_type not in ("Conv", "ConvTranspose", "Gemm", "MatMul"):
            continue
        if node.input[1] not in floats:
            continue
        transposed = any(a.name == "transB" and a.i for a in node.attribute)
        output_last = node.op_type == "MatMul" or (node.op_type == "Gemm" and not transposed)
        found[node.input[1]] = int(output_last or node.op_type == "ConvTranspose")
    return found


def store_weights_in_8_bits(model: Any) -> None:
    """Round the float weights of a graph to 8 bits, with a scale per output channel, in place.

    A cast and a product give the floats back. DequantizeLinear would say the same, but ONNX Runtime
    leaves it in the graph for every frame, and a convolution whose weights are not constant has no
    fast kernel: 1.3 times the demo's latency, where a cast and a product cost none.
    """
    from onnx import TensorProto, helper
    from onnx.numpy_helper import from_array, to_array

    axes, kept, nodes = weights_of(model), [], []
    for tensor in model.graph.initializer:
        if tensor.name not in axes or np.prod(tensor.dims) < LEAST_SIZE:
            kept.append(tensor)
            continue
        name = tensor.name
        integers, scale = _rounded(to_array(tensor), axes[name])
        kept += [from_array(integers, f"{name}_int8"), from_array(scale, f"{name}_scale")]
        nodes += [
            helper.make_node("Cast", [f"{name}_int8"], [f"{name}_cast"], to=TensorProto.FLOAT),
            helper.make_node("Mul", [f"{name}_cast", f"{name}_scale"], [name]),
        ]
    del model.graph.initializer[:]
    model.graph.initializer.extend(kept)
    _replace_nodes(model, [nodes, *model.graph.node])


def _rounded(weight: NDArray, axis: int) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
    """Integers, and the scale of every channel, in a shape that multiplies them."""
    others = tuple(a for a in range(weight.ndim) if a != axis)
    largest = np.abs(weight).max(others, keepdims=True)
    scale = np.where(largest > 0, largest / 127, 1).astype(np.float32)
    return np.rint(weight / scale).astype(np.int8), scale


def _replace_nodes(model: Any, nodes: list[Any]) -> None:
    """Put these in the graph's place; a list among them stands for its nodes."""
    flat = [node for entry in nodes for node in (entry if isinstance(entry, list) else [entry])]
    copies = [type(node).FromString(node.SerializeToString()) for node in flat]
    del model.graph.node[:]
    model.graph.node.extend(copies)
