"""Heads: the shared BEV map to the output of a task, its loss and its decoding."""

from .center import CenterHead, CenterOutput
from .map import MapHead, MapOutput
from .transfusion import TransFusionHead, TransFusionOutput
from .transfusion_loss import TransFusionLoss

__all__ = [
    "CenterHead",
    "CenterOutput",
    "MapHead",
    "MapOutput",
    "TransFusionHead",
    "TransFusionLoss",
    "TransFusionOutput",
]
