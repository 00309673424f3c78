"""Every step's losses in a CSV file."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import pytorch_lightning as pl

from .data import epoch_of

LEADING = ("step", "epoch", "lr", "total")


class LossLog(pl.Callback):
    """Writes ``losses.csv``: step, epoch, lr, total, then one column per loss term.

    One row per optimizer step, numbered from 1: means over the processes and over accumulated
    batches; lr is the rate that this step used. A resumed training drops the rows after the
    checkpoint, so that no step appears twice.

    Args:
        path: the file.
    """

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path)
        self._file = None
        self._columns: list[str] = []
        self._pending: list[dict[str, float]] = []
        self._lr = 0.0
        self._last_step = 0

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Open the file; keep what a resumed training had written up to its checkpoint."""
        self._last_step = trainer.global_step
        if not trainer.is_global_zero:
            return
        rows = _read(self.path) if self.path.exists() and trainer.global_step else []
        kept = [row for row in rows if int(row["step"]) <= trainer.global_step]
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._file = self.path.open("w", newline="")
        self._columns = []
        for row in kept:
            self._write(row)

    def on_before_optimizer_step(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, optimizer
    ) -> None:
        """Note the learning rate of the step."""
        self._lr = optimizer.param_groups[0]["lr"]

    def on_train_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch,
        batch_idx: int,
    ) -> None:
        """Write a row when the step is complete."""
        self._pending.append({**outputs["terms"], **_gradient_terms(pl_module)})
        if trainer.global_step == self._last_step:
            return
        self._last_step = trainer.global_step
        names = list(self._pending[0])
        means = {n: sum(float(t[n]) for t in self._pending) / len(self._pending) for n in names}
        self._pending = []
        if self._file is not None:
            row = {"step": trainer.global_step, "epoch": epoch_of(trainer), "lr": self._lr}
            self._write(row | {name: f"{value:.8g}" for name, value in means.items()})

    def _write(self, row: dict[str, Any]) -> None:
        assert self._file is not None
        if not self._columns:
            self._columns = [*LEADING, *(name for name in row if name not in LEADING)]
            csv.writer(self._file).writerow(self._columns)
        csv.writer(self._file).writerow([row.get(name, "") for name in self._columns])
        self._file.flush()

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Close the file."""
        if self._file is not None:
            self._file.close()
            self._file = None


def _gradient_terms(module: pl.LightningModule) -> dict[str, Any]:
    """What the tasks' gradients were, of a module that watches them."""
    terms = getattr(module, "gradient_terms", None)
    return terms() if terms else {}


def _read(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        # A killed run may have left half a line.
        return [row for row in csv.DictReader(file) if None not in row.values()]
