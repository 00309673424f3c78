"""From a part of the model to an ONNX file, and the checks that every file has to pass."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from ..model import FusionModel
from ..runtime.manifest import GraphSpec, TensorSpec, sha256_of
from .graphs import Port
from .storage import factor_positions

OPSET = 17  # the first with LayerNormalization; TensorRT 8.6 and OpenVINO 2023 know it
STANDARD_DOMAINS = ("", "ai.onnx")


def prepared(model: FusionModel) -> FusionModel:
    """A copy for export: in evaluation mode, transposed convolutions written as others."""
    model = copy.deepcopy(model).cpu().float().eval()
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    for module in list(model.modules()):
        if not isinstance(module, nn.Sequential):
            continue
        children = list(module.named_children())
        for (name, conv), (next_name, norm) in pairwise(children):
            if isinstance(conv, nn.ConvTranspose2d) and isinstance(norm, nn.BatchNorm2d):
                fused = fuse_conv_bn_eval(conv, norm, transpose=True)
                setattr(module, name, ShuffledUp(fused) if _is_disjoint(conv) else fused)
                setattr(module, next_name, nn.Identity())
    return model


def _is_disjoint(conv: nn.ConvTranspose2d) -> bool:
    """Does every output pixel come from one input pixel?"""
    return conv.kernel_size == conv.stride == (conv.stride[0],) * 2 and conv.groups == 1


class ShuffledUp(nn.Module):
    """A transposed convolution of kernel = stride as a 1x1 convolution and a shuffle of pixels.

    The same numbers; but runtimes have fast and quantised kernels for it.
    """

    def __init__(self, conv: nn.ConvTranspose2d):
        super().__init__()
        C, D, s, _ = conv.weight.shape
        self.factor = s
        self.conv = nn.Conv2d(C, D * s * s, 1)
        weight = conv.weight.permute(1, 2, 3, 0).reshape(D * s * s, C, 1, 1)
        self.conv.weight = nn.Parameter(weight.contiguous(), requires_grad=False)
        assert conv.bias is not None
        self.conv.bias = nn.Parameter(conv.bias.repeat_interleave(s * s), requires_grad=False)

    def forward(self, features: Tensor) -> Tensor:
        """(B, C, H, W) to (B, D, s H, s W)."""
        return nn.functional.pixel_shuffle(self.conv(features), self.factor)


def arguments_of(part: Any, inputs: Mapping[str, NDArray]) -> tuple[Tensor, ...]:
    """The part's arguments, in its order, from arrays by name."""
    return tuple(torch.from_numpy(np.ascontiguousarray(inputs[port.name])) for port in part.inputs)


@torch.no_grad()
def write_onnx(part: Any, inputs: Mapping[str, NDArray], path: Path) -> list[str]:
    """Trace a part and write it as ONNX.

    Args:
        part: one of ``graphs``.
        inputs: an example, by name.
        path: the file to write.

    Returns:
        Names of the outputs.

    Raises:
        ValueError: if the result needs more than standard operators.
    """
    arguments = arguments_of(part, inputs)
    outputs = part(*arguments)  # those of heads are known after the first pass
    outputs = outputs if isinstance(outputs, tuple) else (outputs,)
    ports: list[Port] = [*part.inputs, *part.outputs]
    fast_attention = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)  # an operator of torch's own
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the tracer is old, and says so
            torch.onnx.export(
                part,
                arguments,
                str(path),
                dynamo=False,  # the other one needs a package more, and its graphs are longer
                opset_version=OPSET,
                input_names=[port.name for port in part.inputs],
                output_names=[port.name for port in part.outputs],
                dynamic_axes={port.name: port.dynamic for port in ports if port.dynamic},
            )
    finally:
        torch.backends.mha.set_fastpath_enabled(fast_attention)
    shapes = [
        tuple(port.dynamic.get(axis, n) for axis, n in enumerate(output.shape))
        for port, output in zip(part.outputs, outputs, strict=True)
    ]
    _fix_shapes(path, shapes)
    check_onnx(path)
    return [port.name for port in part.outputs]


def _fix_shapes(path: Path, shapes: Sequence[tuple[int | str, ...]]) -> None:
    """Say of every output which shape it has, which the tracer misses; a name is of a length."""
    import onnx

    model = onnx.load(str(path))
    for output, shape in zip(model.graph.output, shapes, strict=True):
        for axis, edge in zip(output.type.tensor_type.shape.dim, shape, strict=True):
            if isinstance(edge, int):
                axis.dim_value = edge
            else:
                axis.dim_param = edge
    factor_positions(model)
    onnx.save(model, str(path))


def check_onnx(path: Path) -> None:
    """Let ``onnx`` check the file, and refuse operators beyond the standard.

    Raises:
        ValueError: naming what is not standard.
    """
    import onnx

    onnx.checker.check_model(str(path), full_check=True)
    model = onnx.load(str(path), load_external_data=False)
    domains = {node.domain for node in model.graph.node}
    domains |= {opset.domain for opset in model.opset_import} | {f.domain for f in model.functions}
    if foreign := domains - set(STANDARD_DOMAINS):
        raise ValueError(f"{path.name} uses operators of {sorted(foreign)}, which no standard has")


def describe_onnx(path: Path) -> GraphSpec:
    """File, checksum, inputs and outputs of an ONNX file, for the manifest."""
    import onnx

    model = onnx.load(str(path), load_external_data=False)
    return GraphSpec(
        path.name,
        sha256_of(path),
        path.stat().st_size,
        _tensors(model.graph.input),
        _tensors(model.graph.output),
    )


def _tensors(values: Sequence[Any]) -> tuple[TensorSpec, ...]:
    from onnx.helper import tensor_dtype_to_np_dtype

    found = []
    for value in values:
        tensor = value.type.tensor_type
        shape = tuple(d.dim_param or d.dim_value for d in tensor.shape.dim)
        dtype = np.dtype(tensor_dtype_to_np_dtype(tensor.elem_type)).name
        found.append(TensorSpec(value.name, dtype, shape))
    return tuple(found)
