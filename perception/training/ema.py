"""An exponential moving average of the weights, for validation and for the finished model."""

from __future__ import annotations

from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor


class EMA(pl.Callback):
    """Keeps a moving average of parameters and buffers, and validates with it.

    average <- d * average + (1 - d) * weights, with d = min(decay, (1 + n) / (10 + n)) after n
    optimizer steps: early on the average forgets its random start quickly, so that it serves short
    trainings too. Floating-point buffers (batch-norm statistics) are averaged like weights;
    counters are copied.

    Args:
        decay: the long-run decay per optimizer step.
    """

    KEY = "EMA"

    def __init__(self, decay: float = 0.999) -> None:
        if not 0 <= decay < 1:
            raise ValueError(f"ema decay is {decay}, expected 0 <= decay < 1")
        self.decay = decay
        self.num_updates = 0
        self.average: dict[str, Tensor] = {}
        self._weights: dict[str, Tensor] | None = None  # the training weights while swapped out

    @property
    def state_key(self) -> str:
        """The callback's name in a checkpoint."""
        return self.KEY

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Start from the weights that training starts from."""
        if stage == "fit" and not self.average:
            self.average = _copy(pl_module.state_dict())

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Follow the model to its device (a resumed average was read to the CPU)."""
        state = pl_module.state_dict()
        self.average = {name: t.to(state[name].device) for name, t in self.average.items()}

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs, batch, batch_idx: int
    ) -> None:
        """Update after every optimizer step (not every accumulated batch)."""
        if trainer.global_step > self.num_updates:
            self.update(pl_module)

    @torch.no_grad()
    def update(self, module: torch.nn.Module) -> None:
        """Move the average towards the module's weights by one step."""
        self.num_updates += 1
        n = self.num_updates
        decay = min(self.decay, (1 + n) / (10 + n))
        for name, value in module.state_dict().items():
            average = self.average[name]
            if average.is_floating_point():
                average.lerp_(value, 1 - decay)
            else:
                average.copy_(value)

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Put the average into the model."""
        if self.average and trainer.state.fn == "fit":
            self._weights = _copy(pl_module.state_dict())
            pl_module.load_state_dict(self.average)

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Put the training weights back."""
        if self._weights is not None:
            pl_module.load_state_dict(self._weights)
            self._weights = None

    def on_exception(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException
    ) -> None:
        """Put the training weights back if validation was cut short."""
        self.on_validation_end(trainer, pl_module)

    def on_save_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Keep the training weights in a checkpoint that is written during validation."""
        if self._weights is not None:
            checkpoint["state_dict"] = self._weights

    def state_dict(self) -> dict[str, Any]:
        """The average and the number of updates."""
        return {"num_updates": self.num_updates, "average": self.average}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from a checkpoint."""
        self.num_updates, self.average = state_dict["num_updates"], state_dict["average"]


def _copy(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.detach().clone() for name, tensor in state.items()}
