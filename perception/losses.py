"""Loss functions: pure, summed over elements, so that the caller chooses what to divide by."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def gaussian_focal_loss(
    logits: Tensor, target: Tensor, alpha: float = 2.0, beta: float = 4.0
) -> Tensor:
    """Focal loss for heat-maps whose peaks are 1 (Law and Deng, ECCV 2018; Zhou 2019), elementwise.

        -(1 - p)^alpha log p                    where target = 1
        -(1 - target)^beta p^alpha log(1 - p)   elsewhere

    Args:
        logits: any shape; p is their sigmoid.
        target: same shape, in [0, 1].
        alpha: how little well-classified cells count.
        beta: how little cells near a peak count.

    Returns:
        Loss of every element, float32.
    """
    logits = logits.float()
    # logsigmoid keeps log(1 - p) finite where p rounds to 1; no clamp, so no dead gradient.
    log_p, log_not_p = F.logsigmoid(logits), F.logsigmoid(-logits)
    p = logits.sigmoid()
    background = (1 - target) ** beta * p**alpha * log_not_p
    return -torch.where(target == 1, (1 - p) ** alpha * log_p, background)


def sigmoid_focal_loss(
    logits: Tensor, target: Tensor, gamma: float = 2.0, alpha: float | None = None
) -> Tensor:
    """Focal loss (Lin et al., ICCV 2017), elementwise.

        -w (1 - q)^gamma log q,   q = p where target = 1, 1 - p where target = 0

    Args:
        logits: any shape; p is their sigmoid.
        target: same shape, bool or 0 and 1.
        gamma: how little well-classified elements count.
        alpha: w is alpha where target = 1, 1 - alpha elsewhere; None weighs all alike.

    Returns:
        Loss of every element, float32.
    """
    signed = logits.float() * (2 * target.float() - 1)
    loss = -((1 - signed.sigmoid()) ** gamma) * F.logsigmoid(signed)
    return loss if alpha is None else loss * torch.where(target.bool(), alpha, 1 - alpha)


def dice_loss(logits: Tensor, target: Tensor, smooth: float = 1.0) -> Tensor:
    """1 - Dice coefficient of soft masks (Milletari et al., 3DV 2016).

        1 - (2 sum(p t) + smooth) / (sum(p^2) + sum(t^2) + smooth)

    It asks for overlap, not for probabilities, so that layers which cover little are drawn at all.

    Args:
        logits: (..., X, Y); p is their sigmoid.
        target: same shape, bool or 0 and 1.
        smooth: makes two empty masks agree.

    Returns:
        (...) float32 in [0, 1).
    """
    p, t = logits.float().sigmoid(), target.float()
    overlap = (p * t).sum((-2, -1))
    return 1 - (2 * overlap + smooth) / ((p * p).sum((-2, -1)) + t.sum((-2, -1)) + smooth)


def lovasz_loss(probability: Tensor, target: Tensor) -> Tensor:
    """Lovász extension of the Jaccard loss 1 - IoU (Berman et al., CVPR 2018, algorithm 1).

    Errors |target - probability| are sorted; each weighs as much as 1 - IoU grows when the
    elements up to it are taken to be wrong. At probabilities of 0 and 1 it is 1 - IoU exactly.

    Args:
        probability: (P,) in [0, 1].
        target: (P,) bool or 0 and 1.

    Returns:
        Scalar float32; 0 where there is no element.
    """
    target = target.float()
    error, order = (target - probability.float()).abs().sort(descending=True)
    positive = target[order]
    intersection = positive.sum() - positive.cumsum(0)
    union = positive.sum() + (1 - positive).cumsum(0)
    jaccard = 1 - intersection / union.clamp(min=1)
    weight = jaccard.diff(prepend=jaccard.new_zeros(1))
    return (error * weight).sum()


def lovasz_softmax_loss(probabilities: Tensor, target: Tensor) -> Tensor:
    """Mean of :func:`lovasz_loss` over the classes that occur (Berman et al., CVPR 2018).

    Args:
        probabilities: (P, K), rows sum to 1.
        target: (P,) int64 class of each row.

    Returns:
        Scalar float32; 0 where there is no row.
    """
    present = target.unique().tolist()
    losses = [lovasz_loss(probabilities[:, k], target == k) for k in present]
    return torch.stack(losses).mean() if losses else 0 * probabilities.sum()


def masked_l1(prediction: Tensor, target: Tensor) -> Tensor:
    """|prediction - target|, elementwise; zero, with zero gradient, where the target is NaN."""
    known = ~target.isnan()
    # Replaced before the subtraction: NaN times zero is NaN in the backward pass.
    return (prediction.float() - target.where(known, 0)).abs() * known


def mean_over_processes(count: Tensor) -> Tensor:
    """A count averaged over the processes of a distributed training, and at least 1.

    DDP averages gradients over processes. Loss sums divided by this number make that average the
    gradient of the same batch in one process, however unevenly the boxes are spread.
    Only where gradients are recorded: evaluation need not run in step on all processes.
    """
    processes = torch.distributed.get_world_size() if _learns_with_others() else 1
    count = sum_over_processes(count) / processes
    return count.clamp(min=1 / processes)


def sum_over_processes(count: Tensor) -> Tensor:
    """Counts of all processes of a distributed training, float32, without gradient.

    Every process must call it equally often, whatever its samples hold. As for
    :func:`mean_over_processes`, only where gradients are recorded.
    """
    count = count.detach().float()
    if _learns_with_others():
        count = count.clone()
        torch.distributed.all_reduce(count)
    return count


def _learns_with_others() -> bool:
    distributed = torch.distributed.is_available() and torch.distributed.is_initialized()
    return torch.is_grad_enabled() and distributed
