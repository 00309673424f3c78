"""Run an exported model: numpy, numba and onnxruntime, no torch."""

from .manifest import Manifest, read_manifest
from .results import Perception
from .runtime import Runtime
from .session import RuntimeOptions

__all__ = ["Manifest", "Perception", "Runtime", "RuntimeOptions", "read_manifest"]
