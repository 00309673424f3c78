"""Compare a kernel's result with the float64 definition."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

DTYPES = (torch.float32, torch.float16, torch.bfloat16)
# Of ||result - exact|| / ||exact||: float32 sums of up to thousands of numbers; the last rounding
# of a half-precision result, and of one weight (2 ** -11 and 2 ** -8 at most).
TOLERANCE = {torch.float32: 1e-5, torch.float16: 1e-3, torch.bfloat16: 8e-3, torch.int64: 0.0}


@dataclass(frozen=True)
class Check:
    """One result beside its definition."""

    kernel: str
    case: str
    dtype: str
    error: float  # relative, in the Euclidean norm; NaN where a number is missing
    tolerance: float

    @property
    def passed(self) -> bool:
        return self.error <= self.tolerance  # false for NaN


def check(kernel: str, case: str, got: Tensor, exact: Tensor) -> Check:
    """How far ``got`` is from ``exact`` (float64, or int64: then it must be equal)."""
    name = str(got.dtype).removeprefix("torch.")
    tolerance = TOLERANCE[got.dtype]
    if got.shape != exact.shape:
        return Check(kernel, case, name, float("nan"), tolerance)
    got, exact = got.double(), exact.double()
    size = exact.norm().item() or 1.0
    return Check(kernel, case, name, (got - exact).norm().item() / size, tolerance)


@contextmanager
def poisoned_memory() -> Iterator[None]:
    """Fresh memory is filled with NaN, so that a forgotten store shows."""
    torch.use_deterministic_algorithms(True, warn_only=True)
    setattr(torch.utils.deterministic, "fill_uninitialized_memory", True)  # noqa: B010 untyped
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(False)
