"""The ways that tracked objects have come, in a colour for each."""

from __future__ import annotations

import colorsys
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ...datasets.frame import Frame
from ...datasets.geometry import apply, inverse
from ..evaluation.tracks import Timeline, TrackedBoxes
from .style import Colour

GOLDEN_TURN = (5**0.5 - 1) / 2  # numbers that follow each other get hues far apart
FAINTEST = 0.15  # opacity of the oldest piece


@dataclass(frozen=True)
class Trail:
    """One object's way, in the BEV frame of the picture."""

    places: NDArray[np.float64]  # (T, 3) on the ground, oldest first; the last one is now
    colour: Colour

    @property
    def pieces(self) -> NDArray[np.float64]:
        """(T - 1, 2, 3) from place to place."""
        return np.stack([self.places[:-1], self.places[1:]], 1)

    @property
    def opacities(self) -> NDArray[np.float64]:
        """(T - 1,) of the pieces; the past fades."""
        return np.linspace(FAINTEST, 0.95, max(len(self.places), 2))[1:][: len(self.places) - 1]


def track_colour(number: int) -> Colour:
    """A strong colour for a track."""
    red, green, blue = colorsys.hsv_to_rgb(number * GOLDEN_TURN % 1, 0.7, 1.0)
    return round(255 * red), round(255 * green), round(255 * blue)


def trails_at(
    tracked: TrackedBoxes,
    time: Timeline,
    sample: int,
    frame: Frame,
    min_score: float = 0.0,
    seconds: float = 4.0,
) -> tuple[Trail, ...]:
    """The trails of the tracks that are seen at a sample.

    Args:
        tracked: boxes in the global frame.
        time: of their samples.
        sample: now.
        frame: that sample; the trails are in its BEV frame.
        min_score: tracks whose present score is lower are left out.
        seconds: how far back they reach.
    """
    now = time.timestamp_us[sample]
    past = (time.scene == time.scene[sample]) & (time.timestamp_us <= now)
    past &= time.timestamp_us >= now - round(seconds * 1e6)
    rows = np.flatnonzero(past[tracked.boxes.sample])
    rows = rows[np.argsort(time.timestamp_us[tracked.boxes.sample[rows]], kind="stable")]
    bev_from_global = frame.bev_from_ego @ inverse(frame.global_from_ego)
    floor = tracked.boxes.translation[rows].copy()
    floor[:, 2] -= tracked.boxes.size[rows, 2] / 2
    places, track = apply(bev_from_global, floor), tracked.track[rows]
    here = (tracked.boxes.sample == sample) & (tracked.boxes.score >= min_score)
    present = np.unique(tracked.track[here])
    return tuple(Trail(places[track == n], track_colour(int(n))) for n in present)
