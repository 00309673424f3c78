"""Heads: the shared BEV map to the output of a task, its loss and its decoding."""

from .center import CenterHead, CenterOutput
from .map import MapHead, MapOutput

__all__ = ["CenterHead", "CenterOutput", "MapHead", "MapOutput"]
