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
