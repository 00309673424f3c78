"""Fusers: the sensors' BEV maps to one."""

from .class_evidence import ClassEvidence
from .conv import ConvFuser
from .single import SingleSensor

__all__ = ["ClassEvidence", "ConvFuser", "SingleSensor"]
