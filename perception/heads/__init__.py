"""Heads: the shared BEV map to the output of a task, its loss and its decoding."""

from .affinity import AffinityHead, AffinityOutput
from .center import CenterHead, CenterOutput
from .map import MapHead, MapOutput
from .occupancy import OccupancyHead, OccupancyOutput, OccupancyVolume
from .transfusion import TransFusionHead, TransFusionOutput
from .transfusion_loss import TransFusionLoss

__all__ = [
    "AffinityHead",
    "AffinityOutput",
    "CenterHead",
    "CenterOutput",
    "MapHead",
    "MapOutput",
    "OccupancyHead",
    "OccupancyOutput",
    "OccupancyVolume",
    "TransFusionHead",
    "TransFusionLoss",
    "TransFusionOutput",
]
