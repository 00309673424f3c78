"""Sensor encoders: raw sensor data to a BEV map each."""

from .camera import CameraEncoder, CameraOutput
from .depth_lss import LSS, DepthLSS
from .fpn import FPN, LSSFPN
from .frustum import DepthOutput
from .image_backbone import ImageBackbone, ResNet
from .image_semantics import ImageSemantics
from .lift_splat import LiftSplat
from .pillars import PillarEncoder
from .swin import Swin
from .voxels import VoxelEncoder

__all__ = [
    "FPN",
    "LSS",
    "LSSFPN",
    "CameraEncoder",
    "CameraOutput",
    "DepthLSS",
    "DepthOutput",
    "ImageBackbone",
    "ImageSemantics",
    "LiftSplat",
    "PillarEncoder",
    "ResNet",
    "Swin",
    "VoxelEncoder",
]
