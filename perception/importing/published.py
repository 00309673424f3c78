"""Read the tensors of a published checkpoint; nothing in the file is run."""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from ..training.state_file import CheckpointError


class _Ignored:
    """Stands for an object beside the weights, such as a training log; holds nothing."""

    def __new__(cls, *args: Any, **kwargs: Any) -> _Ignored:
        return super().__new__(cls)

    def __setstate__(self, state: Any) -> None: ...


def read_published(path: Path | str) -> dict[str, Tensor]:
    """The model's tensors by name, on the CPU.

    A ``.pth`` is read by torch's restricted unpickler. Objects of other libraries beside the
    weights are not made: an empty object takes their place.

    Raises:
        CheckpointError: if the file cannot be read or holds no weights.
    """
    path = Path(path)
    if not path.is_file():
        raise CheckpointError(f"there is no checkpoint {path}; give a .pth or .safetensors file")
    if path.suffix == ".safetensors":
        try:
            return load_file(path)
        except (SafetensorError, OSError) as error:
            raise _unreadable(path, error) from error
    try:
        content = _unpickled(path)
    except (pickle.UnpicklingError, RuntimeError, EOFError, OSError, ValueError) as error:
        raise _unreadable(path, error) from error
    weights = content.get("state_dict", content) if isinstance(content, Mapping) else None
    if not isinstance(weights, Mapping) or not weights:
        raise CheckpointError(f"{path} holds no state_dict; give a checkpoint of a model")
    wrong = [name for name, value in weights.items() if not isinstance(value, Tensor)]
    if wrong:
        raise CheckpointError(
            f"{path} is no state_dict: {wrong[0]!r} is a {type(weights[wrong[0]]).__name__}"
        )
    # "module." is what wrappers for several GPUs put before every name.
    return {str(name).removeprefix("module."): value for name, value in weights.items()}


def _unpickled(path: Path) -> Any:
    try:
        foreign = torch.serialization.get_unsafe_globals_in_checkpoint(str(path))
    except ValueError:  # the format before torch 1.6, whose names cannot be listed
        foreign = []
    ignored: list[Any] = [(_Ignored, name) for name in foreign]
    with torch.serialization.safe_globals(ignored):
        return torch.load(path, map_location="cpu", weights_only=True)


def _unreadable(path: Path, error: Exception) -> CheckpointError:
    reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    return CheckpointError(
        f"{path} is damaged or not a checkpoint that can be read without running code from it "
        f"({reason}); download it again, or save its state_dict as .safetensors where it was made"
    )
