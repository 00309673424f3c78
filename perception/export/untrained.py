"""Makes an untrained model fit to be compared with its export."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from ...datasets.batch import Batch
from ..heads import CenterHead, TransFusionHead
from ..model import FusionModel

# The highest peak's logit above the mean, about that of a trained model; a wider spread would end
# where the sigmoid is 1 for many.
HIGHEST = 6.0


@torch.no_grad()
def spread_peaks(model: FusionModel, batch: Batch) -> None:
    """Give normalisation the statistics of a batch, and heat-maps a spread, in place.

    At the start of a training a deep network's features are nearly the same everywhere, and the
    logits of its heat-maps equal but for the last digits of float32: which cells are the peaks
    that boxes are read at is then a matter of rounding, and comparing boxes tells nothing about an
    export.

    Args:
        model: with random weights, in evaluation mode.
        batch: to measure on.
    """
    norms = [module for module in model.modules() if isinstance(module, _BatchNorm)]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.train().momentum = 1.0  # what it sees replaces what it knew
    model(batch)
    for norm, momentum in zip(norms, momenta):
        norm.eval().momentum = momentum
    layers: list[nn.Conv2d] = []
    for head in model.heads.values():
        branches = []
        if isinstance(head, TransFusionHead):
            branches = [head.heatmap]
        elif isinstance(head, CenterHead):
            branches = list(head.heatmap)
        for branch in branches:
            assert isinstance(branch, nn.Sequential)
            last = branch[-1]
            assert isinstance(last, nn.Conv2d)
            layers.append(last)
    hooks = [layer.register_forward_hook(_spread) for layer in layers]
    model(batch)
    for hook in hooks:
        hook.remove()


def _spread(layer: nn.Module, inputs: tuple[Tensor, ...], logits: Tensor) -> None:
    """Scale a layer so that its outputs have a spread, and keep their mean at its bias."""
    assert isinstance(layer, nn.Conv2d)
    assert layer.bias is not None
    mean = logits.mean((0, 2, 3))
    factor = HIGHEST / (logits - mean.view(1, -1, 1, 1)).max()
    prior = layer.bias.clone()
    layer.weight *= factor
    layer.bias.copy_(prior - factor * (mean - prior))
