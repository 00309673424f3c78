"""How far a training is: a bar on a terminal, plain lines anywhere else."""

from __future__ import annotations

import sys
import time
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.callbacks import ProgressBar, RichProgressBar

from .data import epoch_of
from .schedule import TimeBudget


def progress_callback(every_seconds: float = 10.0) -> pl.Callback:
    """A rich progress bar where standard output is a terminal, else :class:`PlainProgress`."""
    return RichProgressBar() if sys.stdout.isatty() else PlainProgress(every_seconds)


class PlainProgress(ProgressBar):
    """Prints a line every few seconds: step, loss, steps per second, time left.

    Args:
        every_seconds: least time between two lines.
    """

    def __init__(self, every_seconds: float = 10.0) -> None:
        super().__init__()
        self.every_seconds = every_seconds
        self._enabled = True
        self._began = self._printed = 0.0
        self._first_step = 0

    def disable(self) -> None:
        """Print nothing (Lightning does so on all processes but the first)."""
        self._enabled = False

    def enable(self) -> None:
        """Print again."""
        self._enabled = True

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Start the clock."""
        self._began = time.monotonic()
        self._printed = 0.0
        self._first_step = trainer.global_step

    def on_train_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch,
        batch_idx: int,
    ) -> None:
        """Print a line if it is time."""
        now = time.monotonic()
        if not self._enabled or now - self._printed < self.every_seconds:
            return
        self._printed = now
        print(self.line(trainer, float(outputs["terms"]["total"]), now - self._began), flush=True)

    def line(self, trainer: pl.Trainer, loss: float, seconds: float) -> str:
        """One line of progress, ``seconds`` after the start."""
        steps = max(trainer.global_step - self._first_step, 1)
        budget: TimeBudget | None = getattr(trainer.lightning_module, "budget", None)
        if budget is not None:
            of, left = "", max(budget.seconds - budget.elapsed, 0.0)
        else:
            total = trainer.estimated_stepping_batches
            of, left = f"/{total:g}", (total - trainer.global_step) * seconds / steps
        return (
            f"epoch {epoch_of(trainer)} step {trainer.global_step}{of}  loss {loss:.4f}  "
            f"{steps / seconds:.2f} steps/s  {_clock(left)} left"
        )

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Say why no step is taken for a while."""
        if self._enabled and not trainer.sanity_checking:
            print(f"validating after step {trainer.global_step}", flush=True)


def _clock(seconds: float) -> str:
    if seconds == float("inf"):
        return "no end"
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"
