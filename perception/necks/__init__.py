"""BEV backbones and necks: one BEV map to another on the same grid."""

from .second import SECOND

__all__ = ["SECOND"]
