"""Steps Frame -> Frame that make sensor data worse, and the benchmarks made of them."""

from .combine import Identity, Sequential
from .entry import Entry, Fidelity, Part, Suite, Touches
from .suites import SUITES, suite_of
from .training import RandomCorruption

__all__ = [
    "SUITES",
    "Entry",
    "Fidelity",
    "Identity",
    "Part",
    "RandomCorruption",
    "Sequential",
    "Suite",
    "Touches",
    "suite_of",
]
