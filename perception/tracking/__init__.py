"""Tracking by detection, on numpy and numba alone: what a deployed runtime uses too.

A tracker keeps nothing between two moments: ``step`` takes the state and gives the next one, so
that a stream can be stopped, stored, and gone on with. A new scene begins with ``start``.
"""

from .affinity import Affinities, Affinity
from .detections import TrackedDetections, Tracker
from .greedy import GreedyTracker
from .kalman import KalmanTracker
from .profiles import PROFILES, Profile

__all__ = [
    "PROFILES", "Affinities", "Affinity", "GreedyTracker", "KalmanTracker", "Profile",
    "TrackedDetections", "Tracker",
]  # fmt: skip
