"""Fusers: the sensors' BEV maps to one."""

from .conv import ConvFuser
from .single import SingleSensor

__all__ = ["ConvFuser", "SingleSensor"]
