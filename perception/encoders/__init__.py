"""Sensor encoders: raw sensor data to a BEV map each."""

from .camera import CameraEncoder, CameraOutput
from .fpn import FPN
from .image_backbone import ImageBackbone, ResNet
from .image_semantics import ImageSemantics
from .lift_splat import DepthOutput, LiftSplat
from .pillars import PillarEncoder
from .swin import Swin
from .voxels import VoxelEncoder

__all__ = [
    "FPN",
    "CameraEncoder",
    "CameraOutput",
    "DepthOutput",
    "ImageBackbone",
    "ImageSemantics",
    "LiftSplat",
    "PillarEncoder",
    "ResNet",
    "Swin",
    "VoxelEncoder",
]
