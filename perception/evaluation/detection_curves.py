"""From hits and misses in score order to average precision and mean errors.

Everything is read off at 101 recall values, 0 to 1. The first eleven (recall up to 0.1) are left
out of every mean, since they are noisy, and precision counts only above 0.1.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

RECALL = np.linspace(0, 1, 101)
MIN_PRECISION = 0.1
FIRST = 11  # index of the first recall value above the smallest that counts, 0.1


def average_precision(hit: NDArray[np.bool_], num_truth: int) -> float:
    """Area under the precision-recall curve above recall 0.1 and precision 0.1, in [0, 1].

    Args:
        hit: (P,) was the prediction matched? Best prediction first.
        num_truth: number of ground-truth boxes.
    """
    if num_truth == 0 or not hit.any():
        return 0.0
    hits = np.cumsum(hit).astype(np.float64)
    precision = hits / np.arange(1, len(hit) + 1)
    sampled = np.interp(RECALL, hits / num_truth, precision, right=0)
    return float(np.maximum(sampled[FIRST:] - MIN_PRECISION, 0).mean() / (1 - MIN_PRECISION))


def mean_error(hit: NDArray[np.bool_], score: NDArray, error: NDArray, num_truth: int) -> float:
    """Mean over recall of the running mean of an error; 1 where recall 0.1 is not reached.

    Args:
        hit: (P,) was the prediction matched? Best prediction first.
        score: (P,) falling.
        error: (number of hits,) of the matched predictions, in the same order; NaN entries are
            left out of the running mean, which is 1 throughout if there is nothing else.
        num_truth: number of ground-truth boxes.
    """
    if num_truth == 0 or not hit.any():
        return 1.0
    at_recall = np.interp(RECALL, np.cumsum(hit) / num_truth, score, right=0)
    # The devkit finds the recall reached by looking for a score that is not zero.
    reached = np.flatnonzero(at_recall)
    last = reached[-1] if len(reached) else 0
    if last < FIRST:
        return 1.0
    # interp wants rising scores; where scores are equal its choice among them is the devkit's.
    sampled = np.interp(at_recall[::-1], score[hit][::-1], _running_mean(error)[::-1])[::-1]
    return float(sampled[FIRST : last + 1].mean())


def _running_mean(error: NDArray) -> NDArray[np.float64]:
    known = ~np.isnan(error)
    if not known.any():
        return np.ones(len(error))
    total = np.cumsum(np.where(known, error, 0.0))
    return total / np.maximum(np.cumsum(known), 1)
