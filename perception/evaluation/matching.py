"""Which prediction finds which ground-truth box, in nuScenes' way.

Predictions are taken best first; each takes the nearest box of its class and sample that is not
taken yet, and is a hit if that box is nearer than the threshold. A miss takes nothing, even where
a box further down the list would have had a use for it.
"""

from __future__ import annotations

from collections.abc import Sequence

import numba
import numpy as np
from numpy.typing import NDArray

from ...datasets.nuscenes.classes import DETECTION_CLASSES
from .boxes import GlobalBoxes


def score_order(score: NDArray) -> NDArray[np.int64]:
    """(M,) indices by falling score; of equal scores the later box first, as in the devkit."""
    return np.argsort(score, kind="stable")[::-1]


def match(
    predictions: GlobalBoxes, truth: GlobalBoxes, thresholds: Sequence[float]
) -> NDArray[np.int64]:
    """Match predictions, given best first, to ground truth.

    Args:
        predictions: P boxes sorted by ``score_order``.
        truth: G boxes; of two equally near ones the first is taken.
        thresholds: T distances between centres on the ground, metres.

    Returns:
        (T, P) index into ``truth``, -1 for a false positive.
    """
    group = truth.sample * len(DETECTION_CLASSES) + truth.label
    order = np.argsort(group, kind="stable")
    wanted = predictions.sample * len(DETECTION_CLASSES) + predictions.label
    matched = _match(
        np.ascontiguousarray(predictions.translation[:, :2]),
        np.searchsorted(group[order], wanted, "left"),
        np.searchsorted(group[order], wanted, "right"),
        np.ascontiguousarray(truth.translation[order, :2]),
        np.asarray(thresholds, np.float64),
    )
    return np.append(order, -1)[matched]


@numba.njit
def _match(center, first, last, truth_center, thresholds):
    """center (P, 2); ground truth first[p]:last[p] is what p may take -> (T, P)."""
    matched = np.full((len(thresholds), len(center)), -1, np.int64)
    taken = np.zeros((len(thresholds), len(truth_center)), np.bool_)
    for t in range(len(thresholds)):
        for p in range(len(center)):
            nearest, found = np.inf, -1
            for g in range(first[p], last[p]):
                if taken[t, g]:
                    continue
                dx = center[p, 0] - truth_center[g, 0]
                dy = center[p, 1] - truth_center[g, 1]
                distance = np.sqrt(dx * dx + dy * dy)
                if distance < nearest:
                    nearest, found = distance, g
            if nearest < thresholds[t]:
                taken[t, found] = True
                matched[t, p] = found
    return matched
