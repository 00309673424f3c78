"""Fusers: the sensors' BEV maps to one."""

from .conv import ConvFuser

__all__ = ["ConvFuser"]
