"""Graphs in half precision: half the size, for devices that compute in it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from ..runtime import read_manifest
from ..runtime.manifest import write_manifest
from .trace import check_onnx, describe_onnx

# Positions, ranks and exponentials have too few digits in half precision.
FULL_PRECISION = ["GridSample", "TopK", "Floor", "Softmax"]


def to_half(folder: Path) -> None:
    """Convert the graphs of a float32 export in place, and its manifest.

    Inputs and outputs stay as they are. A CPU computes the operators in float32 that it has no
    half-precision kernel for.
    """
    import onnx
    from onnxruntime.transformers.float16 import (
        DEFAULT_OP_BLOCK_LIST,
        convert_float_to_float16,
    )

    manifest, graphs = read_manifest(folder), {}
    for name, graph in manifest.graphs.items():
        path = folder / graph.file
        model = onnx.load(str(path))
        # As in training: metres keep their digits until a layer has made features of them.
        kept = _behind(model, "depth", "Conv") + _behind(model, "voxel_features", "Relu")
        kept += _behind(model, "past_transform", "GridSample")
        half = convert_float_to_float16(
            model,
            keep_io_types=True,
            op_block_list=[*DEFAULT_OP_BLOCK_LIST, *FULL_PRECISION],
            node_block_list=kept,
        )
        _keep_digits_of_inputs(half.graph)
        _sort(half.graph)
        onnx.save(half, str(path))
        check_onnx(path)
        graphs[name] = describe_onnx(path)
    write_manifest(folder, replace(manifest, precision="fp16", graphs=graphs))


def _behind(model: Any, name: str, last: str) -> list[str]:
    """Names of the nodes that follow from a tensor, up to the first of an operator."""
    reached, found = {name}, []
    for node in model.graph.node:
        if reached & set(node.input):
            found.append(node.name)
            if node.op_type != last:
                reached |= set(node.output)
    return found


def _keep_digits_of_inputs(graph: Any) -> None:
    """Let what computes in full precision read the graph's inputs themselves.

    The converter casts all of them to half precision first, and then back for these nodes.
    """
    from onnx import TensorProto

    casts = {node.output[0]: node for node in graph.node if node.op_type == "Cast"}
    kinds = {tensor.name: tensor.type.tensor_type.elem_type for tensor in graph.input}
    given = {name for name, kind in kinds.items() if kind == TensorProto.FLOAT}
    source = {}
    for name, node in casts.items():
        before = casts.get(node.input[0])
        if before is not None and before.input[0] in given and _casts_to(node, TensorProto.FLOAT):
            source[name] = before.input[0]
    for node in graph.node:
        for place, name in enumerate(node.input):
            node.input[place] = source.get(name, name)
    read = {name for node in graph.node for name in node.input}
    read |= {tensor.name for tensor in graph.output}
    kept = [n for n in graph.node if n.op_type != "Cast" or read.intersection(n.output)]
    kept = [type(node).FromString(node.SerializeToString()) for node in kept]
    del graph.node[:]
    graph.node.extend(kept)


def _casts_to(node: Any, kind: int) -> bool:
    return any(a.name == "to" and a.i == kind for a in node.attribute)


def _sort(graph: Any) -> None:
    """Put every node behind those that it reads from, and keep one of equal casts.

    The converter appends its casts, for every reader one.
    """
    made = {output for node in graph.node for output in node.output}
    waiting, done, ordered = list(graph.node), set(), []
    while waiting:
        ready = [node for node in waiting if made.isdisjoint(set(node.input) - done)]
        assert ready, "the graph has a cycle"
        for node in ready:
            if not done.issuperset(node.output):
                ordered.append(node)
            done |= set(node.output)
        taken = {id(node) for node in ready}
        waiting = [node for node in waiting if id(node) not in taken]
    nodes = [type(node).FromString(node.SerializeToString()) for node in ordered]
    del graph.node[:]
    graph.node.extend(nodes)
