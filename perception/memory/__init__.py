"""Temporal memory: what earlier moments put on the BEV map, brought into the present."""

from .bev_memory import BEVMemory
from .moments import Moments, Past, recall
from .motion_match import MotionMatch, correlation, patch_correlation
from .stream import Stream
from .warp import warp

__all__ = [
    "BEVMemory",
    "Moments",
    "MotionMatch",
    "Past",
    "Stream",
    "correlation",
    "patch_correlation",
    "recall",
    "warp",
]
