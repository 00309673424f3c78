"""Occupancy labels in Occ3D's layout from accumulated LiDAR, for data that has none."""

from .accumulate import SceneCloud, accumulate
from .frame_labels import label_frame

__all__ = ["SceneCloud", "accumulate", "label_frame"]
