"""Sensor encoders: raw sensor data to a BEV map each."""

from .camera import CameraEncoder
from .fpn import FPN
from .image_backbone import ImageBackbone, ResNet, Swin
from .lift_splat import DepthOutput, LiftSplat
from .pillars import PillarEncoder

__all__ = [
    "FPN",
    "CameraEncoder",
    "DepthOutput",
    "ImageBackbone",
    "LiftSplat",
    "PillarEncoder",
    "ResNet",
    "Swin",
]
