"""What the affinity of two frames should be, and how far a prediction is from it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from ...datasets.batch import BoxTargets
from ...datasets.boxes import Boxes3D

# Places of the further columns and rows, counted behind the matches.
DEAD, MISSED = 0, 1
NEWBORN, FALSE_POSITIVE = 0, 1


@dataclass(frozen=True)
class AffinityLogits:
    """Scores of N detections of a frame against M of the next one."""

    match: Tensor  # (N, M), minus infinity where the two cannot be one object
    row: Tensor  # (N, 2) dead, missed
    column: Tensor  # (M, 2) newborn, false positive

    def forward_log(self) -> Tensor:
        """(N, M + 2) log-probabilities of what becomes of every earlier detection."""
        return F.log_softmax(torch.cat([self.match, self.row], 1).float(), 1)

    def backward_log(self) -> Tensor:
        """(M, N + 2) log-probabilities of where every later detection comes from."""
        return F.log_softmax(torch.cat([self.match.T, self.column], 1).float(), 1)


@dataclass(frozen=True)
class AffinityTargets:
    """The right entry of every row and every column."""

    row: NDArray[np.int64]  # (N,) column of the match, M + DEAD or M + MISSED
    column: NDArray[np.int64]  # (M,) row of the match, N + NEWBORN or N + FALSE_POSITIVE


def affinity_loss(logits: AffinityLogits, targets: AffinityTargets) -> tuple[Tensor, Tensor]:
    """Negative log-likelihoods, summed over rows and over columns (ShaSTA's log affinity loss)."""
    device = logits.match.device
    row, column = (torch.from_numpy(t).to(device) for t in (targets.row, targets.column))
    return (
        F.nll_loss(logits.forward_log(), row, reduction="sum"),
        F.nll_loss(logits.backward_log(), column, reduction="sum"),
    )


def affinity_targets(
    before: NDArray[np.int64],
    now: NDArray[np.int64],
    annotated: NDArray[np.int64],
    possible: NDArray[np.bool_],
) -> AffinityTargets:
    """What becomes of earlier detections, and where later ones come from.

    An object whose two detections are too far apart to be matched is missed, and newborn.

    Args:
        before: (N,) object that each earlier detection shows, -1 for none; none twice.
        now: (M,) the same of the later ones.
        annotated: the objects that are there in the later frame, detected or not.
        possible: (N, M) which matches can be made.
    """
    N, M = possible.shape
    match = (before[:, None] == now[None]) & (before >= 0)[:, None] & possible
    there = (before >= 0) & np.isin(before, annotated)
    row = np.where(there, M + MISSED, M + DEAD)
    column = np.where(now >= 0, N + NEWBORN, N + FALSE_POSITIVE)
    i, j = np.nonzero(match)
    row[i], column[j] = j, i
    return AffinityTargets(row.astype(np.int64), column.astype(np.int64))


def objects_of_sample(truth: BoxTargets, sample: int) -> tuple[Boxes3D, NDArray[np.int64]]:
    """The annotated boxes of one sample, and their objects."""
    mine = truth.sample == sample

    def column(values: Tensor) -> NDArray[np.float64]:
        return values[mine].cpu().numpy().astype(np.float64)

    boxes = Boxes3D(
        column(truth.center),
        column(truth.size),
        column(truth.yaw),
        column(truth.velocity),
        truth.label[mine].cpu().numpy(),
    )
    return boxes, truth.instance[mine].cpu().numpy()


def objects_shown(
    found: Boxes3D, truth: Boxes3D, instance: NDArray[np.int64], distance: float
) -> NDArray[np.int64]:
    """(M,) the object that each detection shows, -1 for none; as nuScenes matches boxes.

    Each in turn takes the nearest annotation of its class that is free, if it is near enough.

    Args:
        found: M boxes, best first.
        truth: annotations.
        instance: their objects.
        distance: metres between middles on the ground that a detection may be off.
    """
    gap = np.linalg.norm(found.center[:, None, :2] - truth.center[None, :, :2], axis=-1)
    gap[found.label[:, None] != truth.label[None]] = np.inf
    shown = np.full(len(found), -1, np.int64)
    for k in np.flatnonzero((gap < distance).any(1)):
        nearest = gap[k].argmin()
        if gap[k, nearest] < distance:
            shown[k] = instance[nearest]
            gap[:, nearest] = np.inf
    return shown
