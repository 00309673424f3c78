"""When checkpoints are written, and the random state that a resumed training needs."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Checkpoint

LAST, BEST = "last.safetensors", "best.safetensors"


class SaveCheckpoints(Checkpoint):
    """Writes ``last.safetensors`` every few steps and at the end, ``best.safetensors`` by score.

    Args:
        folder: the run folder.
        every_steps: optimizer steps between two writes of the last checkpoint.
        score: logged value whose highest is the best; where it is never logged, no best is kept.
    """

    def __init__(
        self, folder: Path | str, every_steps: int = 500, score: str = "val/score"
    ) -> None:
        if every_steps < 1:
            raise ValueError(f"save_every is {every_steps}, expected at least 1 step")
        self.folder = Path(folder)
        self.every_steps = every_steps
        self.score = score
        self.best_score: float | None = None
        self._saved_step = 0

    @property
    def last(self) -> Path:
        """Path of the newest checkpoint."""
        return self.folder / LAST

    @property
    def best(self) -> Path:
        """Path of the checkpoint with the highest score."""
        return self.folder / BEST

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs, batch, batch_idx: int
    ) -> None:
        """Save when enough steps were taken since the last time."""
        if trainer.global_step - self._saved_step >= self.every_steps:
            self._save(trainer, self.last)

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Save the best so far."""
        score = trainer.callback_metrics.get(self.score)
        if trainer.sanity_checking or score is None:
            return
        if self.best_score is None or float(score) > self.best_score:
            self.best_score = float(score)
            self._save(trainer, self.best)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Save the end."""
        self._save(trainer, self.last)

    def _save(self, trainer: pl.Trainer, path: Path) -> None:
        if path == self.last:
            self._saved_step = trainer.global_step
        trainer.save_checkpoint(path)

    def state_dict(self) -> dict[str, Any]:
        """The best score and when the last checkpoint was written."""
        return {"best_score": self.best_score, "saved_step": self._saved_step}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from a checkpoint."""
        self.best_score = state_dict["best_score"]
        self._saved_step = state_dict["saved_step"]


class RandomState(pl.Callback):
    """Stores the random generators of every process, and puts them back on resuming.

    Data does not need them (its randomness comes from seed, token and epoch); layers such as
    dropout do.
    """

    def __init__(self) -> None:
        self._pending: list[dict[str, Any]] | None = None

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch, batch_idx: int
    ) -> None:
        """Restore just before the first step, after everything that might draw numbers."""
        if self._pending is not None and len(self._pending) == trainer.world_size:
            _restore(self._pending[trainer.global_rank])
        self._pending = None

    def state_dict(self) -> dict[str, Any]:
        """The states of all processes, by rank."""
        return {"processes": _of_all_processes(_state())}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Keep the states until the first step."""
        self._pending = state_dict["processes"]


def _of_all_processes(state: dict[str, Any]) -> list[dict[str, Any]]:
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return [state]
    states: list[Any] = [None] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(states, state)
    return states


def _state() -> dict[str, Any]:
    kind, keys, *rest = np.random.get_state()  # noqa: NPY002 the global one
    return {
        "python": random.getstate(),
        "numpy": (kind, np.asarray(keys).tolist(), *rest),
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state() if torch.cuda.is_available() else None,
    }


def _restore(state: dict[str, Any]) -> None:
    random.setstate(state["python"])
    np.random.set_state(state["numpy"])  # noqa: NPY002
    torch.set_rng_state(state["torch"])
    if state["cuda"] is not None and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"])
