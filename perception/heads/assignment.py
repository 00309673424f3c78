"""Which object query shall find which box: the cheapest one-to-one assignment."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from ...kernels.box_iou import box_iou


def matching_cost(
    logits: Tensor,
    boxes: Tensor,
    labels: Tensor,
    truth: Tensor,
    extent: tuple[float, float],
    class_weight: float,
    distance_weight: float,
    iou_weight: float,
) -> Tensor:
    """Cost of giving query q the box m: class, distance seen from above, and overlap.

    The class costs what the focal loss of that one class would rise by (alpha 0.25, gamma 2); the
    distance is |dx| / extent x + |dy| / extent y; the overlap counts as -IoU in three dimensions
    (Bai et al., TransFusion, CVPR 2022).

    Args:
        logits: (Q, K).
        boxes: (Q, 7) x, y, z of the middle, length, width, height, yaw.
        labels: (M,) class of every true box.
        truth: (M, 7) true boxes.
        extent: of the detection range in x and y, metres.
        class_weight: weight of the class cost; the two others alike.
        distance_weight: of the distance.
        iou_weight: of the overlap.

    Returns:
        (Q, M) float32.
    """
    p, eps = logits.float().sigmoid(), 1e-12
    rise = -0.25 * (1 - p) ** 2 * (p + eps).log() + 0.75 * p**2 * (1 - p + eps).log()
    scale = boxes.new_tensor(extent)
    distance = torch.cdist(boxes[:, :2] / scale, truth[:, :2] / scale, p=1)
    overlap = box_iou(boxes, truth)
    return class_weight * rise[:, labels] + distance_weight * distance - iou_weight * overlap


def assign(cost: Tensor) -> tuple[Tensor, Tensor]:
    """The one-to-one assignment of least total cost (Hungarian).

    Args:
        cost: (Q, M); what is not finite counts as worse than anything finite.

    Returns:
        Query and box of min(Q, M) pairs, int64, queries ascending.
    """
    from scipy.optimize import linear_sum_assignment

    matrix = np.nan_to_num(cost.detach().float().cpu().numpy(), nan=1e6, posinf=1e6, neginf=-1e6)
    query, box = linear_sum_assignment(matrix)
    return (torch.as_tensor(query, device=cost.device), torch.as_tensor(box, device=cost.device))
