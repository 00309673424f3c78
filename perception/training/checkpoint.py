"""Checkpoints: Lightning's training state as safetensors, and weights back into a model."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from lightning_fabric.plugins import CheckpointIO
from torch import Tensor, nn

from .ema import EMA
from .state_file import CheckpointError, read_state, write_state

MODEL = "model."  # TrainingModule holds the model under this name


class SafetensorsIO(CheckpointIO):
    """Stores Lightning checkpoints as one ``.safetensors`` file each (see ``state_file``)."""

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: str | os.PathLike, storage_options: Any = None
    ) -> None:
        """Write ``checkpoint`` to ``path``, all or nothing."""
        write_state(checkpoint, path)

    def load_checkpoint(
        self, path: str | os.PathLike, map_location: Any = None, weights_only: bool | None = None
    ) -> dict[str, Any]:
        """Read a checkpoint; tensors are on the CPU, whatever ``map_location`` says."""
        return read_state(path)

    def remove_checkpoint(self, path: str | os.PathLike) -> None:
        """Delete the file."""
        Path(path).unlink(missing_ok=True)


def read_weights(path: str | os.PathLike, ema: bool = True) -> dict[str, Tensor]:
    """A model's weights from a checkpoint or a bare weights file, by the model's own names.

    Args:
        path: a ``.safetensors`` file.
        ema: take the moving average where the checkpoint has one.
    """

    def entry(top: dict) -> Any:
        if "state_dict" not in top:
            raise CheckpointError(f"{path} holds no weights; give a checkpoint of `bevstack train`")
        callbacks = dict(top.get("callbacks", {"dict": []})["dict"])
        if ema and EMA.KEY in callbacks:
            return dict(callbacks[EMA.KEY]["dict"])["average"]
        return top["state_dict"]

    weights = read_state(path, entry)
    # A training has more: the weights of tasks that it learns, for instance.
    of_model = {n.removeprefix(MODEL): t for n, t in weights.items() if n.startswith(MODEL)}
    return of_model or weights


def load_weights(
    model: nn.Module, path: str | os.PathLike, ema: bool = True, strict: bool = True
) -> list[str]:
    """Copy a checkpoint's weights into ``model``.

    Args:
        model: the model, built from the same config as the checkpoint's.
        path: a checkpoint of a run, or a bare ``.safetensors`` of weights.
        ema: take the moving average where the checkpoint has one.
        strict: refuse a checkpoint that does not fit name by name and shape by shape; otherwise
            what fits is loaded.

    Returns:
        What did not fit, one line per tensor; empty if all did.

    Raises:
        CheckpointError: if ``strict`` and anything is missing, left over or of another shape.
    """
    weights = read_weights(path, ema)
    state = model.state_dict()
    misfits = [f"missing {name}" for name in state if name not in weights]
    misfits += [f"unexpected {name}" for name in weights if name not in state]
    misfits += [
        f"{name} is {tuple(weights[name].shape)}, the model's is {tuple(state[name].shape)}"
        for name in state
        if name in weights and weights[name].shape != state[name].shape
    ]
    if misfits and strict:
        raise CheckpointError(
            f"{path} is not a checkpoint of this configuration ({len(misfits)} of "
            f"{len(state.keys() | weights.keys())} tensors differ); use the config.yaml of its run "
            "folder:\n  " + "\n  ".join(_shortened(misfits))
        )
    fitting = {n: t for n, t in weights.items() if n in state and t.shape == state[n].shape}
    model.load_state_dict(fitting, strict=False)
    return misfits


def _shortened(lines: list[str], limit: int = 30) -> list[str]:
    rest = len(lines) - limit
    return lines if rest <= 0 else [*lines[:limit], f"and {rest} more"]
