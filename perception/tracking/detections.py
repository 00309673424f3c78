"""What goes into a tracker and what comes out."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from ...datasets.boxes import Detections
from .affinity import Affinity


@dataclass(frozen=True)
class TrackedDetections:
    """M boxes of one moment and the tracks that they belong to."""

    detections: Detections  # in the frame of those that came in; the score is the track's
    track: NDArray[np.int64]  # (M,) from 0, never used again within a stream

    def __len__(self) -> int:
        return len(self.track)


class Tracker(Protocol):
    """Follows objects from moment to moment."""

    def start(self) -> Any:
        """The state before the first moment of a scene."""
        ...

    def step(
        self,
        state: Any,
        detections: Detections,
        timestamp_us: int,
        affinity: Affinity | None = None,
    ) -> tuple[Any, TrackedDetections]:
        """Take the detections of the next moment.

        Args:
            state: what ``start`` or the step before gave; it is left as it is.
            detections: boxes in a frame that does not move between the steps of a scene: the
                global frame, or an odometry frame. Never the vehicle's.
            timestamp_us: of this moment, later than the one before.
            affinity: what a model says of these detections and those of the step before, in the
                order in which they were given; None without a model, or if a frame was left out.

        Returns:
            The next state, and the tracks that were seen at this moment.

        Raises:
            ValueError: if time does not go on, or a box is not finite (a velocity may be NaN); if
                the tracker makes no use of an affinity.
        """
        ...


def seconds_since(before_us: int | None, timestamp_us: int) -> float:
    """Seconds between two moments; 0 at the first one.

    Raises:
        ValueError: if time does not go on.
    """
    if before_us is None:
        return 0.0
    if timestamp_us <= before_us:
        raise ValueError(
            f"a tracker was given time {timestamp_us} us after {before_us} us; give the frames of "
            "a scene in order, and start a new state for a new scene"
        )
    return (timestamp_us - before_us) / 1e6


def checked(detections: Detections) -> Detections:
    """The detections themselves.

    Raises:
        ValueError: if a box or score is not finite; velocities may be NaN.
    """
    boxes = detections.boxes
    values = {"center": boxes.center, "size": boxes.size, "yaw": boxes.yaw}
    for name, column in (values | {"score": detections.score}).items():
        if not np.isfinite(column).all():
            raise ValueError(f"a detection has a {name} that is not finite; drop such boxes first")
    return detections
