"""Several tasks on one map: how their losses, or their gradients at the map, are weighed.

A gradient method sees only the Gram matrix of the tasks' gradients at the shared map and answers
with one weight per task: the shared part of the model then learns from the weighted sum. Heads
always learn from their own loss.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn


class UncertaintyWeights(nn.Module):
    """Learned weights of the tasks' losses (Kendall et al., CVPR 2018).

        total = sum over tasks of exp(-s) L + s / 2

    s is the logarithm of a task's variance, learned with the model. Where the total is least, each
    weighted loss is 1 / 2: what a task's loss is measured in does not matter. ``task_weights`` of
    the model are where learning starts.

    Args:
        tasks: names of the tasks that are weighed; the losses of others are added as they are.
    """

    def __init__(self, tasks: Sequence[str]):
        super().__init__()
        self.tasks = tuple(tasks)
        self.log_variance = nn.Parameter(torch.zeros(len(self.tasks)))

    def forward(self, losses: Mapping[str, Tensor]) -> Tensor:
        """The total of the losses by task."""
        weighed = [torch.exp(-s) * losses[task] + s / 2 for task, s in self._known(losses)]
        others = [loss for task, loss in losses.items() if task not in self.tasks]
        return torch.stack([*weighed, *others]).sum()

    def weights(self) -> dict[str, Tensor]:
        """exp(-s) of every task, for the logs."""
        return dict(zip(self.tasks, torch.exp(-self.log_variance.detach())))

    def _known(self, losses: Mapping[str, Tensor]) -> list[tuple[str, Tensor]]:
        return [(t, s) for t, s in zip(self.tasks, self.log_variance) if t in losses]


class EqualNorms(nn.Module):
    """Scale the tasks' gradients at the shared map to one norm.

    Each task then moves the shared part equally far, whatever its loss is measured in: the
    inter-gradient calibration of FULLER (Huang et al., 2023), with a moving average of the norms in
    place of those of one batch. The common norm is the mean over tasks, so that the learning rate
    keeps its meaning.

    Args:
        tasks: names of the tasks.
        shares: how far a task may move the shared part against the others; 1 for those not named.
        momentum: of the moving average of the norms.
        limit: largest factor on a gradient, and the inverse of the smallest.
    """

    norms: Tensor  # (T,) moving average; 0 until a task had a gradient
    share: Tensor  # (T,) their mean is 1

    def __init__(
        self,
        tasks: Sequence[str],
        shares: Mapping[str, float] | None = None,
        momentum: float = 0.9,
        limit: float = 100.0,
    ):
        super().__init__()
        if unknown := set(shares or {}) - set(tasks):
            raise ValueError(f"shares names {sorted(unknown)}; the tasks are {list(tasks)}")
        if not 0 <= momentum < 1 or limit < 1:
            raise ValueError(f"momentum is {momentum}, limit {limit}; give [0, 1) and at least 1")
        wanted = torch.tensor([float((shares or {}).get(task, 1.0)) for task in tasks])
        self.register_buffer("share", wanted / wanted.mean(), persistent=False)
        self.register_buffer("norms", torch.zeros(len(wanted)))
        self.momentum, self.limit = momentum, limit

    def forward(self, gram: Tensor) -> Tensor:
        """(T,) weights from the Gram matrix (T, T) of the gradients."""
        seen = gram.diagonal().clamp(min=0).sqrt()
        average = torch.lerp(seen, self.norms, self.momentum).where(self.norms > 0, seen)
        # A task without labels in this batch says nothing about its norm, an overflow in half
        # precision neither.
        self.norms.copy_(average.where((seen > 0) & seen.isfinite(), self.norms))
        known = self.norms > 0
        mean = self.norms.sum() / known.sum().clamp(min=1)
        factor = (mean / self.norms).clamp(1 / self.limit, self.limit)
        return self.share * factor.where(known, 1.0)


class PCGrad(nn.Module):
    """Take out of every task's gradient what works against another task (Yu et al., NeurIPS 2020).

    A gradient with a negative product with another task's loses its part along it, the others in
    random order; the results are added. Norms stay as the task weights make them.

    Args:
        tasks: names of the tasks.
    """

    def __init__(self, tasks: Sequence[str]):
        super().__init__()

    def forward(self, gram: Tensor) -> Tensor:
        """(T,) weights from the Gram matrix (T, T) of the gradients."""
        num_tasks = len(gram)
        order = torch.randperm(num_tasks).tolist()
        rows = torch.eye(num_tasks, dtype=gram.dtype, device=gram.device)  # row t: task t's mixture
        for other in order:
            product = rows @ gram[other]
            product = product.clamp(max=0) / gram[other, other].clamp(min=1e-30)
            product[other] = 0
            rows[:, other] -= product
        return rows.sum(0)
