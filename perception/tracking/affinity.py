"""What a model says about which detections of two consecutive frames are one object.

As in ShaSTA (Sadjadpour et al., RA-L 2023) the matrix of matches has two further columns, for an
object that is gone (dead) or there but not detected (missed), and two further rows, for one that
was not detected before (newborn) or is none (false positive).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Affinity:
    """Probabilities about N detections of a frame and M of the next one.

    Those of an earlier detection sum to 1 forward in time, and those of a later one backward; a
    match is the mean of both.
    """

    rows: NDArray[np.int64]  # (N,) places in the list of the earlier frame's detections
    columns: NDArray[np.int64]  # (M,) places in the list of the later frame's
    match: NDArray[np.float32]  # (N, M) the two are one object
    dead: NDArray[np.float32]  # (N,) the earlier one is no object any more
    missed: NDArray[np.float32]  # (N,) it is one, that is not among the later ones
    newborn: NDArray[np.float32]  # (M,) the later one is an object without an earlier detection
    false_positive: NDArray[np.float32]  # (M,) it is no object

    def matches(self, rows: NDArray[np.int64], columns: NDArray[np.int64]) -> NDArray[np.float64]:
        """(R, C) probability for places in the two lists; NaN for those that nothing is said of."""
        i, j = _found(self.rows, rows), _found(self.columns, columns)
        known = (i >= 0)[:, None] & (j >= 0)[None]
        padded = np.pad(self.match.astype(np.float64), (0, 1), constant_values=np.nan)
        return np.where(known, padded[i][:, j], np.nan)

    def of_rows(self, values: NDArray, rows: NDArray[np.int64]) -> NDArray[np.float64]:
        """``dead`` or ``missed`` at places in the earlier list, NaN where nothing is said."""
        return np.append(values.astype(np.float64), np.nan)[_found(self.rows, rows)]

    def of_columns(self, values: NDArray, columns: NDArray[np.int64]) -> NDArray[np.float64]:
        """``newborn`` or ``false_positive`` at places in the later list, or NaN."""
        return np.append(values.astype(np.float64), np.nan)[_found(self.columns, columns)]


@dataclass(frozen=True)
class Affinities:
    """Those of the frames of a data set, by the place of the later frame among them."""

    pairs: Mapping[int, tuple[int, Affinity]] = field(default_factory=dict)  # earlier frame, said

    def between(self, before: int | None, now: int) -> Affinity | None:
        """Of two frames; None unless the model has seen one directly after the other."""
        first, affinity = self.pairs.get(now, (None, None))
        return affinity if before is not None and first == before else None


def _found(known: NDArray[np.int64], wanted: NDArray[np.int64]) -> NDArray[np.int64]:
    """Where the wanted numbers stand among the known ones; -1 for none, and for the number -1."""
    place = np.full(max(known.max(initial=-1), wanted.max(initial=-1)) + 2, -1, np.int64)
    place[known] = np.arange(len(known))
    return place[wanted]
