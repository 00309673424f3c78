"""The training step around a model: losses, optimizer, schedule, validation."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytorch_lightning as pl
import torch
from rich.console import Console
from torch import Tensor

from ...datasets.batch import Batch
from ..model import FusionModel
from .schedule import TimeBudget, one_cycle, scaled_lr
from .validation import ABLATION, EVERYTHING, SensorSet, Validation, metrics_table, score_of


class TrainingModule(pl.LightningModule):
    """Trains a ``FusionModel``, or anything that is called as it is.

    Args:
        model: the model; weights of tasks are its own matter.
        lr: peak learning rate for a total batch of ``lr_batch`` samples.
        lr_batch: the total batch (processes x batch x accumulation) that ``lr`` is stated for.
        weight_decay: of AdamW, for weights of two or more dimensions.
        warmup: the part of the training in which the learning rate rises.
        ablation_batches: validation batches on which every sensor alone is measured too; 0 for
            none.
        budget: set if the training's length is given in seconds.
    """

    def __init__(
        self,
        model: FusionModel,
        lr: float = 1e-3,
        lr_batch: int = 32,
        weight_decay: float = 0.01,
        warmup: float = 0.3,
        ablation_batches: int = 8,
        budget: TimeBudget | None = None,
    ) -> None:
        super().__init__()
        self.model = model
        self.lr, self.lr_batch, self.weight_decay = lr, lr_batch, weight_decay
        self.warmup, self.budget = warmup, budget
        self.ablation_batches = ablation_batches
        self.metrics: dict[str, float] = {}  # of the last validation
        self.ablation: dict[str, dict[str, float]] = {}  # of the last one, by sensor set
        self._all = Validation()
        self._subset: dict[SensorSet, Validation] = {}

    def loss_terms(self, batch: Batch) -> dict[str, Tensor]:
        """Every loss term by its name, not yet weighted by task."""
        return self.model.loss(self.model(batch), batch)

    def training_step(self, batch: Batch, batch_idx: int) -> dict[str, Any]:
        """The loss, and all terms as means over the processes for the logs."""
        terms = self.loss_terms(batch)
        total = self.model.total_loss(terms)
        means = self._mean_over_processes({"total": total, **terms})
        self.log_dict({f"train/{name}": v for name, v in means.items()}, batch_size=batch.size)
        return {"loss": total, "terms": means}

    def _mean_over_processes(self, terms: Mapping[str, Tensor]) -> dict[str, Tensor]:
        values = torch.stack([term.detach().float() for term in terms.values()])
        if self.trainer.world_size > 1:
            values = self.trainer.strategy.reduce(values, reduce_op="mean")
        return dict(zip(terms, values.unbind()))

    def configure_optimizers(self) -> dict[str, Any]:
        """AdamW with one cycle over the whole training."""
        trainer = self.trainer
        batch = getattr(getattr(trainer, "datamodule", None), "batch_size", 1)
        lr = scaled_lr(
            self.lr, self.lr_batch, batch, trainer.world_size, trainer.accumulate_grad_batches
        )
        optimizer = torch.optim.AdamW(self._parameter_groups(), lr=lr)
        steps = 1 if self.budget else self._count_in_steps()

        def factor(step: int) -> float:
            progress = self.budget.progress if self.budget else step / steps
            return one_cycle(progress, self.warmup)

        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def _count_in_steps(self) -> int:
        """Let the training end by steps, also where its length is given in epochs.

        Lightning's count of epochs is one off after it was resumed between epochs twice.
        """
        steps = int(self.trainer.estimated_stepping_batches)
        self.trainer.fit_loop.epoch_loop.max_steps = steps
        self.trainer.fit_loop.max_epochs = -1
        return steps

    def _parameter_groups(self) -> list[dict[str, Any]]:
        trained = [p for p in self.parameters() if p.requires_grad]
        groups = [
            {"params": [p for p in trained if p.ndim > 1], "weight_decay": self.weight_decay},
            # Biases and norms have no scale to shrink.
            {"params": [p for p in trained if p.ndim <= 1], "weight_decay": 0.0},
        ]
        return [group for group in groups if group["params"]]

    def on_validation_epoch_start(self) -> None:
        """Start counting anew."""
        self._all = Validation()
        both = getattr(self.model, "camera", None) and getattr(self.model, "lidar", None)
        wanted = both is not None and self.ablation_batches > 0
        self._subset = {sensors: Validation() for sensors in ABLATION} if wanted else {}

    def validation_step(self, batch: Batch | None, batch_idx: int) -> None:
        """Losses and metrics; on the first batches, those of every sensor alone too."""
        if batch is None:  # nothing of it could be read
            return
        outputs = self.model(batch)
        terms = self.model.loss(outputs, batch)
        losses = {"total": self.model.total_loss(terms), **terms}
        self.log_dict(
            {f"val/{name}": value for name, value in losses.items()},
            batch_size=batch.size,
            sync_dist=True,
        )
        decoded = self.model.decode(outputs, batch)
        self._all.add(decoded, batch)
        if batch_idx >= self.ablation_batches:
            return
        for sensors, validation in self._subset.items():
            if sensors != EVERYTHING:
                seen = self.model(batch, use_camera=sensors.camera, use_lidar=sensors.lidar)
                decoded = self.model.decode(seen, batch)
            validation.add(decoded, batch)

    def on_validation_epoch_end(self) -> None:
        """Measure, log and print."""
        # Not every data module has ground truth (test split, other data sets).
        data = getattr(self.trainer, "datamodule", None)
        truth_of = getattr(data, "ground_truth", None)
        truth = truth_of() if truth_of else None
        self.metrics = self._all.gathered().metrics(truth)
        self.ablation = {
            sensors.name: validation.gathered().metrics(truth)
            for sensors, validation in self._subset.items()
        }
        self._all, self._subset = Validation(), {}
        logged = {f"val/{name}": value for name, value in self.metrics.items()}
        if (score := score_of(self.metrics)) is not None:
            logged["val/score"] = score
        self.log_dict(logged)
        if self.trainer.is_global_zero and self.metrics:
            self._print()

    def _print(self) -> None:
        console, step = Console(), self.trainer.global_step
        console.print(
            metrics_table(f"validation after step {step}", [("as trained", self.metrics)])
        )
        if any(self.ablation.values()):
            title = f"sensors alone, first {self.ablation_batches} validation batches"
            console.print(metrics_table(title, list(self.ablation.items())))
