"""Stops at the first loss or gradient that is not finite, and says where it came from."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import fields, is_dataclass
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor, nn

from .module import TrainingModule

# NaN has a meaning there: nuScenes does not know every box's velocity.
MAY_BE_NAN = ("boxes.velocity",)


class NonFiniteError(RuntimeError):
    """A tensor of the training became NaN or infinite; the message names the first one."""


class FiniteGuard(pl.Callback):
    """Checks loss and gradients at every step; on the first bad one, finds the tensor it began at.

    Looked for in this order: the inputs, the weights, the activations (the forward pass is run
    again with a hook on every module), the loss terms, the gradients. With fp16, gradients that
    overflow are the loss scaler's business, so there only losses are checked.
    """

    def __init__(self) -> None:
        self._batch: Any = None

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Remember the batch for the error message."""
        self._batch = batch

    def on_before_backward(
        self, trainer: pl.Trainer, pl_module: TrainingModule, loss: Tensor
    ) -> None:
        """Check the loss."""
        if not torch.isfinite(loss).all():
            cause = find_cause(pl_module, self._batch) or "the sum of the losses"
            raise NonFiniteError(
                _message(trainer, self._batch, f"the loss is {loss.item()}", cause)
            )

    def on_before_optimizer_step(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, optimizer
    ) -> None:
        """Check the gradients."""
        if trainer.scaler is not None:
            return
        named = [(n, p.grad) for n, p in pl_module.named_parameters() if p.grad is not None]
        if not named or torch.isfinite(torch.nn.utils.get_total_norm(g for _, g in named)):
            return
        # The backward pass goes through a model from its end, so the last one is where it began.
        cause = next((f"the gradient of {n}" for n, g in reversed(named) if _bad(g)), None)
        raise NonFiniteError(
            _message(trainer, self._batch, "a gradient is not finite", cause or "their sum")
        )


def find_cause(module: TrainingModule, batch: Any) -> str | None:
    """Name the first non-finite tensor on the way to the loss; None if the second run is clean.

    Args:
        module: the training's module.
        batch: the batch that gave a non-finite loss.
    """
    for name, tensor in tensors_of(batch):
        if name not in MAY_BE_NAN and _bad(tensor):
            return f"input {name}{_owner(batch, name, tensor)}"
    for name, tensor in (*module.named_parameters(), *module.named_buffers()):
        if _bad(tensor):
            return f"weight {name}"
    with torch.no_grad(), _FirstBadOutput(module) as first:
        terms = module.loss_terms(batch)
    if first.found:
        return first.found
    return next((f"loss term {name}" for name, term in terms.items() if _bad(term)), None)


class _FirstBadOutput:
    """Notes the first submodule, in the order of execution, that gives a non-finite output."""

    def __init__(self, root: nn.Module) -> None:
        self.found: str | None = None
        self._root = root
        self._handles: list = []

    def __enter__(self) -> _FirstBadOutput:
        for name, module in self._root.named_modules():
            if name:
                hook = self._hook(f"{name} ({type(module).__name__})")
                self._handles.append(module.register_forward_hook(hook))
        return self

    def __exit__(self, *error) -> None:
        for handle in self._handles:
            handle.remove()

    def _hook(self, name: str):
        def look(module, args, output) -> None:
            if self.found is None:
                bad = next((n for n, t in tensors_of(output) if _bad(t)), None)
                if bad is not None:
                    self.found = f"output of {name}" + (f", {bad}" if bad else "")

        return look


def tensors_of(value: Any, name: str = "") -> Iterator[tuple[str, Tensor]]:
    """All tensors in nested dataclasses, dicts, lists and tuples, with their dotted names."""
    if isinstance(value, Tensor):
        yield name, value
        return
    if is_dataclass(value):
        parts = [(f.name, getattr(value, f.name)) for f in fields(value)]
    elif isinstance(value, Mapping):
        parts = list(value.items())
    elif isinstance(value, list | tuple):
        parts = list(enumerate(value))
    else:
        return
    for key, part in parts:
        yield from tensors_of(part, f"{name}.{key}" if name else str(key))


def _bad(tensor: Tensor) -> bool:
    return tensor.is_floating_point() and not bool(torch.isfinite(tensor).all())


def _owner(batch: Any, name: str, tensor: Tensor) -> str:
    """Which sample a bad input row belongs to, where the batch says so."""
    tokens = getattr(batch, "tokens", None)
    if not tokens or tensor.ndim == 0:
        return ""
    row = (
        int((~torch.isfinite(tensor)).flatten(1).any(1).nonzero()[0])
        if tensor.ndim > 1
        else int((~torch.isfinite(tensor)).nonzero()[0])
    )
    if name.startswith("boxes."):
        row = int(batch.boxes.sample[row])
    elif name == "points":
        row = int(batch.point_sample[row])
    elif name in ("images", "bev_from_image"):
        row = int(batch.image_sample[row])
    return f" of sample {tokens[row]}" if row < len(tokens) else ""


def _message(trainer: pl.Trainer, batch: Any, what: str, cause: str) -> str:
    tokens = ", ".join(getattr(batch, "tokens", ())) or "unknown"
    return (
        f"step {trainer.global_step}: {what}; the first non-finite tensor is {cause}. "
        f"Samples of the batch: {tokens}. Lower the learning rate, clip gradients more, train in "
        "bf16 or fp32 instead of fp16, or look at these samples"
    )
