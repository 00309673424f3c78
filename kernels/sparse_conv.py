"""Sparse convolution over a neighbour table.

    out[u] = act(sum over k of features[rows[u, k]] @ weight[k] + bias + residual[u])

V input voxels, U outputs, K kernel offsets. A neighbour that does not exist adds nothing. The
kernel is not flipped, as in torch's convolutions. ``triton_sparse_conv.py`` holds the GPU kernels.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .neighbors import NeighborTable


def sparse_conv_reference(
    features: Tensor,
    weight: Tensor,
    rows: Tensor,
    bias: Tensor | None = None,
    residual: Tensor | None = None,
    relu: bool = False,
) -> Tensor:
    """The definition: one gather and one matrix product, any device, any dtype.

    It is also the form for export: in ONNX a Gather and a MatMul, with ``rows`` as an input.
    """
    # Row 0 stands for a neighbour that does not exist.
    padded = torch.cat([features.new_zeros(1, features.shape[1]), features])
    gathered = padded.index_select(0, (rows + 1).flatten())
    out = gathered.view(-1, rows.shape[1] * features.shape[1]) @ weight.flatten(0, -2)
    if bias is not None:
        out = out + bias
    if residual is not None:
        out = out + residual
    return out.relu() if relu else out


# --- CPU and GPU ----------------------------------------------------------------------------------


def sparse_conv_cpu(
    features: Tensor,
    weight: Tensor,
    rows: Tensor,
    bias: Tensor | None = None,
    residual: Tensor | None = None,
    relu: bool = False,
) -> Tensor:
    """Listed pairs of input and output, multiplied by numba's register tiles."""
    from .numba_sparse_conv import convolve  # here: numba takes a second to import

    inputs, kernel = _at_least_float32(features, weight)
    first, last = (None if t is None else _array(t, inputs.dtype).numpy() for t in (bias, residual))
    table, threads = rows.contiguous().numpy(), torch.get_num_threads()
    out = convolve(inputs.numpy(), kernel.numpy(), table, first, last, relu, threads)
    return torch.from_numpy(out).to(features.dtype)


def sparse_conv_backward_cpu(
    grad: Tensor, features: Tensor, weight: Tensor, rows: Tensor, by_input: Tensor
) -> tuple[Tensor, Tensor]:
    """Gradients to features and weight; that to the features is a convolution from the outputs."""
    from .numba_sparse_conv import weight_gradient

    grad_features = sparse_conv_cpu(grad, weight.transpose(1, 2), by_input)
    upstream, inputs = _at_least_float32(grad, features)
    table, threads = rows.contiguous().numpy(), torch.get_num_threads()
    grad_weight = weight_gradient(upstream.numpy(), inputs.numpy(), table, threads)
    return grad_features.to(features.dtype), torch.from_numpy(grad_weight).to(weight.dtype)


def _at_least_float32(*tensors: Tensor) -> list[Tensor]:
    double = any(tensor.dtype == torch.float64 for tensor in tensors)
    dtype = torch.float64 if double else torch.float32
    return [_array(tensor, dtype) for tensor in tensors]


def _array(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    return tensor.detach().to(dtype).contiguous()


def sparse_conv_triton(
    features: Tensor,
    weight: Tensor,
    rows: Tensor,
    slots: Tensor,
    masks: Tensor,
    bias: Tensor | None = None,
    residual: Tensor | None = None,
    relu: bool = False,
) -> Tensor:
    """Rows that have about the same neighbours, gathered and multiplied on the way, by Triton."""
    from .triton_sparse_conv import convolve

    return convolve(features, weight, slots, masks, len(rows), bias, residual, relu)


def sparse_conv_backward_triton(
    grad: Tensor,
    features: Tensor,
    weight: Tensor,
    rows: Tensor,
    slots: Tensor,
    masks: Tensor,
    by_input: Tensor,
    by_input_slots: Tensor,
    by_input_masks: Tensor,
) -> tuple[Tensor, Tensor]:
    """Gradients to features and weight, by Triton."""
    from .triton_sparse_conv import convolve, weight_grad

    inverse = by_input_slots, by_input_masks, len(by_input)
    grad_features = convolve(grad, weight.transpose(1, 2), *inverse)
    return grad_features, weight_grad(features, grad, slots, masks).to(weight.dtype)


# --- torch.library --------------------------------------------------------------------------------


# Groups, and the way back by input, are None where they are not needed: the one on a CPU, the other
# where no gradient is wanted.


@torch.library.custom_op("bevstack::sparse_conv", mutates_args=(), device_types="cpu")
def _sparse_conv(
    features: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    residual: Tensor | None,
    relu: bool,
    rows: Tensor,
    slots: Tensor | None,
    masks: Tensor | None,
    by_input: Tensor | None,
    by_input_slots: Tensor | None,
    by_input_masks: Tensor | None,
) -> Tensor:
    return sparse_conv_cpu(features, weight, rows, bias, residual, relu)


@_sparse_conv.register_kernel("cuda")
def _(features, weight, bias, residual, relu, rows, slots, masks, *_) -> Tensor:
    return sparse_conv_triton(features, weight, rows, slots, masks, bias, residual, relu)


@_sparse_conv.register_fake
def _(features, weight, bias, residual, relu, rows, *_):
    return features.new_empty(rows.shape[0], weight.shape[2])


@torch.library.custom_op("bevstack::sparse_conv_backward", mutates_args=(), device_types="cpu")
def _sparse_conv_backward(
    grad: Tensor,
    features: Tensor,
    weight: Tensor,
    rows: Tensor,
    slots: Tensor | None,
    masks: Tensor | None,
    by_input: Tensor,
    by_input_slots: Tensor | None,
    by_input_masks: Tensor | None,
) -> tuple[Tensor, Tensor]:
    return sparse_conv_backward_cpu(grad, features, weight, rows, by_input)


_sparse_conv_backward.register_kernel("cuda")(sparse_conv_backward_triton)


@_sparse_conv_backward.register_fake
def _(grad, features, weight, *_):
    return features.new_empty(features.shape), weight.new_empty(weight.shape)


def _save_inputs(ctx, inputs, output) -> None:
    features, weight, bias, residual, relu, *table = inputs
    ctx.has_bias, ctx.has_residual = bias is not None, residual is not None
    ctx.save_for_backward(output if relu else None, features, weight, *table)


def _backward(ctx, grad: Tensor):
    output, *saved = ctx.saved_tensors
    if output is not None:
        grad = grad * (output > 0)
    grad_bias = grad.sum(0) if ctx.has_bias else None
    grad_residual = grad if ctx.has_residual else None
    grads = _sparse_conv_backward(grad.contiguous(), *saved)
    return *grads, grad_bias, grad_residual, None, None, None, None, None, None, None


_sparse_conv.register_autograd(_backward, setup_context=_save_inputs)


# --- Public ---------------------------------------------------------------------------------------


def sparse_conv(
    features: Tensor,
    weight: Tensor,
    table: NeighborTable,
    bias: Tensor | None = None,
    residual: Tensor | None = None,
    relu: bool = False,
) -> Tensor:
    """Convolve sparse voxels; differentiable in features, weight, bias and residual.

    Sums are in float32 (float64 for float64), in a fixed order: same input, same bits. Batch
    normalisation after it is folded into weight and bias for inference.

    Args:
        features: (V, C_in) float.
        weight: (kz, ky, kx, C_in, C_out), or (K, C_in, C_out), in the dtype of ``features``.
        table: the neighbours, from ``neighbors``; its number of inputs is V.
        bias: (C_out,), added to every output.
        residual: (U, C_out), added to the outputs before the ReLU.
        relu: cut off what is below zero.

    Returns:
        (U, C_out) in the dtype of ``features``.

    Raises:
        ValueError: if the shapes do not fit together.
    """
    kernel = weight.flatten(0, -3)  # (K, C_in, C_out)
    expected = table.num_inputs, kernel.shape[1]
    if kernel.shape[0] != table.rows.shape[1] or tuple(features.shape) != expected:
        raise ValueError(
            f"features {tuple(features.shape)} and weight {tuple(weight.shape)} do not fit to a "
            f"table of {table.num_inputs} inputs and {table.rows.shape[1]} kernel offsets"
        )
    if residual is not None and residual.shape != (table.rows.shape[0], kernel.shape[2]):
        raise ValueError(
            f"the residual is {tuple(residual.shape)}, the output "
            f"{(table.rows.shape[0], kernel.shape[2])}"
        )
    epilogue = bias, residual, relu
    rows, (slots, masks) = table.rows, table.groups
    if not torch.is_grad_enabled() or not _any_requires_grad(features, weight, bias, residual):
        return _sparse_conv(features, kernel, *epilogue, rows, slots, masks, None, None, None)
    back, (back_slots, back_masks) = table.by_input, table.groups_by_input
    return _sparse_conv(
        features, kernel, *epilogue, rows, slots, masks, back, back_slots, back_masks
    )


def _any_requires_grad(*tensors: Tensor | None) -> bool:
    return any(tensor is not None and tensor.requires_grad for tensor in tensors)
