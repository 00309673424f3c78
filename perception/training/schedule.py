"""The learning rate over a training, and trainings that have a length in seconds."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from typing import Any, Protocol

import pytorch_lightning as pl


@dataclass(frozen=True)
class Progress:
    """How far a training is."""

    done: float  # 0 at its first step to 1 after its last
    step: int  # optimizer steps taken
    epoch: int  # that the next step belongs to, from 0
    epochs: int | None  # of the whole training, begun ones too; None if its length is in seconds


class Schedule(Protocol):
    """A factor on the learning rate, or on another number of the optimizer."""

    def __call__(self, progress: Progress) -> float:
        """The factor for the next step."""
        ...


@dataclass(frozen=True)
class OneCycle:
    """A cosine up to the peak, then a cosine down (Smith, 2018); mmcv calls it cyclic.

    Args:
        warmup: the part of the training that the way to the peak takes.
        start: the first factor.
        peak: the factor between the two ways.
        end: the last factor.
    """

    warmup: float = 0.3
    start: float = 0.1
    peak: float = 1.0
    end: float = 1e-3

    def __call__(self, progress: Progress) -> float:
        """See :class:`Schedule`."""
        done, warmup = min(max(progress.done, 0.0), 1.0), self.warmup
        if done < warmup:
            return _cosine(self.start, self.peak, done / warmup)
        return _cosine(self.peak, self.end, (done - warmup) / (1 - warmup) if warmup < 1 else 1.0)


@dataclass(frozen=True)
class CosineByEpoch:
    """A cosine that falls from epoch to epoch, after a linear warm-up of some steps.

    mmcv steps its cosine so unless told otherwise; MIT BEVFusion's detector was trained with it.
    Epoch e of E has the factor end + (1 - end) (1 + cos(pi e / E)) / 2; of the first
    ``warmup_steps``, step i has 1 - (1 - i / warmup_steps) (1 - warmup_start) times that.

    Args:
        warmup_steps: optimizer steps of the warm-up.
        warmup_start: the factor of the first step.
        end: what the cosine would fall to after the last epoch.
    """

    warmup_steps: int = 500
    warmup_start: float = 1 / 3
    end: float = 1e-3

    def __call__(self, progress: Progress) -> float:
        """See :class:`Schedule`."""
        if progress.epochs is None:
            raise ValueError(
                "CosineByEpoch needs a training whose length is given in epochs or steps; set "
                "training.epochs or training.max_steps in place of max_seconds"
            )
        factor = _cosine(1.0, self.end, min(progress.epoch / progress.epochs, 1.0))
        if progress.step < self.warmup_steps:
            left = 1 - progress.step / self.warmup_steps
            factor *= 1 - left * (1 - self.warmup_start)
        return factor


def _cosine(start: float, end: float, part: float) -> float:
    return end + (start - end) * (1 + math.cos(math.pi * part)) / 2


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
