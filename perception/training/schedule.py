"""The learning rate over a training, and trainings that have a length in seconds."""

from __future__ import annotations

import math
import time
from typing import Any

import pytorch_lightning as pl


def one_cycle(progress: float, warmup: float = 0.3, start: float = 0.1, end: float = 1e-3) -> float:
    """The learning rate as a fraction of its peak: a cosine up, then a cosine down (Smith, 2018).

    Args:
        progress: how much of the training is done, 0 to 1.
        warmup: the part of the training that the way up takes.
        start: the first value.
        end: the last value.
    """
    progress = min(max(progress, 0.0), 1.0)
    if progress < warmup:
        low, high, part = start, 1.0, progress / warmup
    else:
        low, high, part = 1.0, end, (progress - warmup) / (1 - warmup) if warmup < 1 else 1.0
    return high + (low - high) * (1 + math.cos(math.pi * part)) / 2


def scaled_lr(lr: float, lr_batch: int, batch: int, processes: int, accumulate: int) -> float:
    """The peak learning rate for the samples that make one optimizer step (linear scaling rule).

    Args:
        lr: the rate stated in the config.
        lr_batch: the total batch it is stated for.
        batch: samples per process and forward pass.
        processes: how many processes train together.
        accumulate: forward passes per optimizer step.
    """
    return lr * batch * processes * accumulate / lr_batch


class TimeBudget(pl.Callback):
    """Ends a training after a number of seconds; progress is the part of them that has passed.

    The schedule then needs no guess of the speed: the learning rate follows the clock, and reaches
    its end when the time is up, whatever else the machine does meanwhile. Validations during the
    training count, as does the time before an interruption; the last validation does not. Such a
    training is as repeatable as the machine is; trainings by steps or epochs repeat exactly.

    Args:
        seconds: wall-clock budget of the training.
    """

    def __init__(self, seconds: float) -> None:
        if not seconds > 0:
            raise ValueError(f"max_seconds is {seconds}, expected a positive number")
        self.seconds = seconds
        self.elapsed = 0.0
        self._before = 0.0  # in earlier runs of a resumed training
        self._began: float | None = None

    @property
    def progress(self) -> float:
        """The part of the budget that is used up, as of the last step; 0 to 1."""
        return min(self.elapsed / self.seconds, 1.0)

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Start the clock."""
        self._began = time.monotonic()

    def on_before_optimizer_step(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, optimizer
    ) -> None:
        """Read the clock of the first process, for all of them: they must stop together."""
        assert self._began is not None
        elapsed = self._before + time.monotonic() - self._began
        self.elapsed = trainer.strategy.broadcast(elapsed, 0)

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs, batch, batch_idx: int
    ) -> None:
        """Stop when the time is up."""
        if self.elapsed >= self.seconds:
            trainer.should_stop = True

    def state_dict(self) -> dict[str, Any]:
        """The seconds used."""
        return {"elapsed": self.elapsed}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from a checkpoint."""
        self.elapsed = self._before = state_dict["elapsed"]
