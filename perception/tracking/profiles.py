"""How objects of each class move, and how well a detector sees them."""

from __future__ import annotations

from dataclasses import dataclass

from .association import Measure


@dataclass(frozen=True)
class Profile:
    """What a Kalman filter has to know of a class; all noise as standard deviations.

    Args:
        acceleration: m/s2 by which the speed changes within a step, in each direction.
        gate: what the measure of a predicted and a detected box must be below, to be one object.
        measure: ``distance`` of the middles on the ground, in metres; or ``giou``, 1 - GIoU of the
            ground rectangles, 0..2. The latter reaches farther along a box than across it, as
            vehicles do.
        turns: it follows arcs (constant turn rate); otherwise straight lines.
        turn_acceleration: rad/s2 by which the turn rate changes within a step, if it turns.
        yaw_walk: rad/sqrt(s) by which the heading changes beside that.
        place_error: metres, of a detected middle.
        speed_error: m/s, of a detected velocity, in each direction.
        yaw_error: radians, of a detected heading.
    """

    acceleration: float
    gate: float
    measure: Measure = "distance"
    turns: bool = False
    turn_acceleration: float = 0.5
    yaw_walk: float = 0.2
    place_error: float = 0.4
    speed_error: float = 1.5
    yaw_error: float = 0.3

    @property
    def by_giou(self) -> bool:
        """Is the measure GIoU?"""
        return self.measure == "giou"


# Gates, measures and errors of measurement were chosen class by class on the detections of a small
# model on the synthetic train split.
PROFILES = {
    "car": Profile(2.0, 1.4, "giou", turns=True, place_error=0.2, speed_error=3.5),
    "truck": Profile(2.0, 1.4, "giou", turns=True, place_error=0.25, speed_error=3.5),
    "bus": Profile(2.0, 1.5, "giou", turns=True, place_error=0.25, speed_error=3.5),
    "trailer": Profile(2.0, 1.4, "giou", place_error=0.25, speed_error=3.5),
    "motorcycle": Profile(2.0, 1.5, turns=True, place_error=0.25, speed_error=3.5),
    "bicycle": Profile(2.0, 1.7, "giou", place_error=0.25, speed_error=3.5),
    "pedestrian": Profile(1.5, 2.0, place_error=0.15, speed_error=3.0),
}
