"""What a runtime knows of a drive from one frame to the next."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..decoding.affinity import LinkedFrame


@dataclass(frozen=True)
class Moment:
    """Which drive a frame belongs to, and when it was taken."""

    scene: str
    timestamp_us: int


@dataclass(frozen=True)
class Remembered:
    """An earlier moment of a model with memory."""

    moment: Moment
    global_from_bev: NDArray[np.float64]  # (4, 4)
    map: Any  # (1, C, X, Y) onnxruntime.OrtValue, on the device of the graph that made it


@dataclass(frozen=True)
class RuntimeState:
    """The state of one stream of frames: a call takes the one that the call before gave.

    Nothing in it changes afterwards, so that it may be kept, and gone on from more than once; one
    runtime may serve any number of streams. A frame of another scene, or one that is not later
    than the last, begins anew by itself.
    """

    moment: Moment
    tracks: Any = None  # of the tracker; None for a model that does not track
    memory: tuple[Remembered, ...] = ()  # the last moments; none for a model without memory
    linked: LinkedFrame | None = None  # the frame; None for a model without learned affinities
