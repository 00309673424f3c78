"""Run an exported model: numpy, numba and onnxruntime, no torch."""

from .manifest import Manifest, read_manifest
from .results import Perception
from .runtime import Runtime
from .session import RuntimeOptions
from .state import Moment, RuntimeState

__all__ = [
    "Manifest", "Moment", "Perception", "Runtime", "RuntimeOptions", "RuntimeState",
    "read_manifest",
]  # fmt: skip
