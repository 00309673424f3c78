"""Augmentation: steps Frame -> Frame, drawn from a seed and the sample's token."""

from .bev import BEVAugmentation
from .color import ColorJitter
from .dropout import SensorDropout
from .image import ImageAugmentation, ImageResize
from .paste import ObjectPaste
from .published import PublishedImageAugmentation, PublishedResize

__all__ = [
    "BEVAugmentation",
    "ColorJitter",
    "ImageAugmentation",
    "ImageResize",
    "ObjectPaste",
    "PublishedImageAugmentation",
    "PublishedResize",
    "SensorDropout",
]
