"""The convolution block that every part of the model is made of."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class ConvBlock(nn.Sequential):
    """A convolution, batch normalisation and ReLU; "same" padding.

    Args:
        in_channels: channels of the input.
        out_channels: channels of the output.
        kernel_size: odd edge of the kernel.
        stride: 1 keeps the size, 2 halves it.
        bias: give the convolution a bias too; the normalisation's does as well without.
        eps: of the normalisation.
        momentum: of its running statistics.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int = 3,
        stride: int = 1,
        bias: bool = False,
        eps: float = 1e-5,
        momentum: float = 0.1,
    ):
        padding = kernel_size // 2
        super().__init__(
            nn.Conv2d(in_channels, out_channels, kernel_size, stride, padding, bias=bias),
            nn.BatchNorm2d(out_channels, eps, momentum),
            nn.ReLU(inplace=True),
        )


def output_conv(in_channels: int, out_channels: int, bias: float = 0.0) -> nn.Conv2d:
    """The 1x1 convolution that ends a branch, with a constant first bias."""
    conv = nn.Conv2d(in_channels, out_channels, 1)
    assert conv.bias is not None
    nn.init.constant_(conv.bias, bias)
    return conv


def start_as_mmcv(module: nn.Module) -> None:
    """Kaiming-normal weights (fan-out, ReLU) of all convolutions that a norm follows.

    What mmcv's ``ConvModule`` does, and with it published models; such convolutions have no bias.
    """
    for conv in module.modules():
        if isinstance(conv, nn.Conv1d | nn.Conv2d) and conv.bias is None:
            nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")


def absent_map(encoder: nn.Module, batch_size: int, shape: tuple[int, ...]) -> Tensor:
    """(batch_size, *shape) zeros, from an encoder that has nothing to see.

    In training the zeros depend, with gradient zero, on all parameters of the encoder: DDP then
    finds a gradient for each of them on every process, whichever sensors a process has.
    """
    parameters = [p for p in encoder.parameters() if p.requires_grad]
    first = next(encoder.parameters())
    zeros = torch.zeros(batch_size, *shape, dtype=first.dtype, device=first.device)
    if encoder.training and torch.is_grad_enabled():
        zeros = zeros + sum(0 * p.sum() for p in parameters)
    return zeros


def zero_where_absent(bev: Tensor, sample: Tensor) -> Tensor:
    """The map (B, C, X, Y), zero for every sample whose index does not occur in ``sample``.

    A sensor that is missing in one sample then looks the same as one missing in all.
    """
    present = sample.bincount(minlength=len(bev)) > 0
    return bev * present.view(-1, 1, 1, 1)


def full_precision(tensor: Tensor) -> torch.autocast:
    """Context in which geometry keeps float32 under mixed precision: autocast is off.

    bfloat16 tells metres apart at 50 m only to a quarter.
    """
    return torch.autocast(tensor.device.type, enabled=False)
