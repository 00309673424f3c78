"""The place where the gradients of all tasks meet: the shared BEV map."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations
from typing import Any

import torch
from torch import Tensor, nn

from .balance import EqualNorms, PCGrad


class TaskGradients(nn.Module):
    """Gives each task a view of the shared map, and weighs what comes back in the backward pass.

    Autograd calls the backward of the split once, with the gradients of all tasks; so watching and
    weighing them costs T (T + 1) / 2 products of the map's size and no further backward pass.
    Processes that train together add up their products and share the weights, which are then those
    of one process with all samples.

    Args:
        tasks: names of the tasks.
        balance: weighs the gradients; None watches them alone.
    """

    def __init__(self, tasks: Sequence[str], balance: EqualNorms | PCGrad | None = None):
        super().__init__()
        self.tasks, self.balance = tuple(tasks), balance
        self._gram: Tensor | None = None

    def forward(self, bev: Tensor) -> dict[str, Tensor]:
        """The map by task; the same values."""
        if not (torch.is_grad_enabled() and bev.requires_grad):
            return dict.fromkeys(self.tasks, bev)
        return dict(zip(self.tasks, _Split.apply(bev, self)))

    def combined(self, gradients: Sequence[Tensor]) -> Tensor:
        """What goes on to the shared part, from the gradients of the tasks in their order."""
        flat = [gradient.flatten().float() for gradient in gradients]
        gram = torch.empty(len(flat), len(flat), device=flat[0].device)
        for i, a in enumerate(flat):
            for j, b in enumerate(flat[: i + 1]):
                gram[i, j] = gram[j, i] = a @ b
        if distributed := torch.distributed.is_available() and torch.distributed.is_initialized():
            # DDP takes the mean of the gradients: a process has 1 / P of its samples' part.
            torch.distributed.all_reduce(gram)
            gram /= torch.distributed.get_world_size() ** 2
        self._gram = gram
        weights = self.balance(gram) if self.balance else gram.new_ones(len(flat))
        if distributed and self.balance:  # which may draw an order at random
            torch.distributed.broadcast(weights, src=0)
        weights = weights.to(gradients[0].dtype)
        return sum((w * g for w, g in zip(weights, gradients)), torch.zeros_like(gradients[0]))

    def logged(self, loss_scale: float = 1.0) -> dict[str, Tensor]:
        """Norm of each task's gradient and cosine of each pair, of the last backward pass.

        Args:
            loss_scale: factor on the loss in mixed precision, which is taken out of the norms.
        """
        if self._gram is None:
            return {}
        norms = self._gram.diagonal().clamp(min=0).sqrt()
        values = {f"gradient/{t}": norms[i] / loss_scale for i, t in enumerate(self.tasks)}
        for (i, a), (j, b) in combinations(enumerate(self.tasks), 2):
            product = (norms[i] * norms[j]).clamp(min=1e-30)
            values[f"cosine/{a}-{b}"] = self._gram[i, j] / product
        return values


class _Split(torch.autograd.Function):
    """One map to a view for each task; the gradients come back to ``TaskGradients.combined``."""

    @staticmethod
    def forward(ctx: Any, bev: Tensor, meeting: TaskGradients) -> tuple[Tensor, ...]:
        ctx.meeting = meeting
        return tuple(bev.view_as(bev) for _ in meeting.tasks)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return ctx.meeting.combined(gradients), None
