"""BEV backbones and necks: one BEV map to another on the same grid."""

from .resnet import BEVResNet
from .second import SECOND

__all__ = ["SECOND", "BEVResNet"]
