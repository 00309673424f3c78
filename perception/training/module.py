"""The training step around a model: losses, optimizer, schedule, validation."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import pytorch_lightning as pl
import torch
from rich.console import Console
from torch import Tensor

from ...datasets.batch import Batch
from ..memory import Stream
from ..model import FusionModel
from .options import TrainingOptions
from .parts import check_parts, freeze, hold, parameter_groups
from .schedule import OneCycle, Progress, TimeBudget, scaled_lr
from .task_gradients import TaskGradients
from .validation import ABLATION, EVERYTHING, SensorSet, Validation, metrics_table, score_of

BETAS = (0.9, 0.999)  # AdamW's


class TrainingModule(pl.LightningModule):
    """Trains a ``FusionModel``, or anything that is called as it is.

    Args:
        model: the model; weights of tasks are its own matter.
        options: how to train.
        budget: set if the training's length is given in seconds.
    """

    def __init__(
        self,
        model: FusionModel,
        options: TrainingOptions | None = None,
        budget: TimeBudget | None = None,
    ) -> None:
        super().__init__()
        options = options or TrainingOptions()
        self.model, self.options, self.budget = model, options, budget
        freeze(model, options.frozen)
        check_parts(model, options.frozen_norms, "training.frozen_norms")
        tasks = list(getattr(model, "heads", {}))
        self.weighting = options.weighting(tasks) if options.weighting else None
        self.task_gradients: TaskGradients | None = None
        if options.log_gradients or options.gradient_balance:
            balance = options.gradient_balance(tasks) if options.gradient_balance else None
            self.task_gradients = TaskGradients(tasks, balance)
        self.metrics: dict[str, float] = {}  # of the last validation
        self.ablation: dict[str, dict[str, float]] = {}  # of the last one, by sensor set
        self._all = Validation()
        self._subset: dict[SensorSet, Validation] = {}
        self._streams: dict[SensorSet, Stream] = {}
        self._progress: Callable[[], Progress] | None = None
        hold(self.model, options.frozen, options.frozen_norms)

    def train(self, mode: bool = True) -> TrainingModule:
        """Training mode; frozen parts stay in evaluation mode."""
        super().train(mode)
        if mode:
            hold(self.model, self.options.frozen, self.options.frozen_norms)
        return self

    def loss_terms(self, batch: Batch) -> dict[str, Tensor]:
        """Every loss term by its name, not yet weighted by task."""
        if self.task_gradients is None:
            return self.model.loss(self.model(batch), batch)
        return self.model.loss(self.model(batch, split=self.task_gradients), batch)

    def training_step(self, batch: Batch, batch_idx: int) -> dict[str, Any]:
        """The loss, and all terms as means over the processes for the logs."""
        terms = self.loss_terms(batch)
        if self.weighting is None:
            total, weights = self.model.total_loss(terms), {}
        else:
            total = self.weighting(self.model.task_losses(terms))
            weights = {f"weight/{task}": w for task, w in self.weighting.weights().items()}
        means = self._mean_over_processes({"total": total, **terms, **weights})
        self.log_dict({f"train/{name}": v for name, v in means.items()}, batch_size=batch.size)
        return {"loss": total, "terms": means}

    def on_after_backward(self) -> None:
        """Log what the tasks' gradients were at the shared map."""
        if logged := self.gradient_terms():
            self.log_dict({f"train/{name}": value for name, value in logged.items()})

    def gradient_terms(self) -> dict[str, Tensor]:
        """Norms and cosines of the tasks' last gradients at the shared map, means of processes."""
        if self.task_gradients is None:
            return {}
        scaler = self.trainer.scaler
        logged = self.task_gradients.logged(scaler.get_scale() if scaler else 1.0)
        return self._mean_over_processes(logged) if logged else {}

    def _mean_over_processes(self, terms: Mapping[str, Tensor]) -> dict[str, Tensor]:
        values = torch.stack([term.detach().float() for term in terms.values()])
        if self.trainer.world_size > 1:
            values = self.trainer.strategy.reduce(values, reduce_op="mean")
        return dict(zip(terms, values.unbind()))

    def configure_optimizers(self) -> dict[str, Any]:
        """AdamW, and its schedule over the whole training."""
        trainer, options = self.trainer, self.options
        batch = getattr(getattr(trainer, "datamodule", None), "batch_size", 1)
        lr = scaled_lr(
            options.lr, options.lr_batch, batch, trainer.world_size, trainer.accumulate_grad_batches
        )
        groups = parameter_groups(
            *(self.model, options.weight_decay, options.decay_all, options.no_decay),
            *(options.lr_factors, lr),
        )
        if self.weighting is not None:
            groups.append({"params": [*self.weighting.parameters()], "weight_decay": 0.0})
        optimizer = torch.optim.AdamW(groups, lr=lr, betas=BETAS)
        schedule = options.schedule or OneCycle(options.warmup)
        progress = self._progress_of_steps()
        self._progress = lambda: progress(trainer.global_step)
        rates = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: schedule(progress(step)))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": rates, "interval": "step"}}

    def _progress_of_steps(self) -> Callable[[int], Progress]:
        """Optimizer steps taken, to how far the training is."""
        budget, options = self.budget, self.options
        if budget is not None:
            return lambda step: Progress(budget.progress, step, 0, None)
        steps = self._count_in_steps()
        if options.max_steps is None:
            epochs = options.epochs
            per_epoch = math.ceil(steps / epochs)
        else:
            self.trainer.fit_loop.setup_data()  # Lightning has not needed it for its count
            batches = self.trainer.num_training_batches
            per_epoch = math.ceil(batches / self.trainer.accumulate_grad_batches)
            epochs = math.ceil(steps / per_epoch)
        return lambda step: Progress(step / steps, step, step // per_epoch, epochs)

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        """Set beta1 for the step."""
        if self.options.beta1_schedule is not None and self._progress is not None:
            beta1 = BETAS[0] * self.options.beta1_schedule(self._progress())
            for group in optimizer.param_groups:
                group["betas"] = (beta1, group["betas"][1])

    def _count_in_steps(self) -> int:
        """Let the training end by steps, also where its length is given in epochs.

        Lightning's count of epochs is one off after it was resumed between epochs twice.
        """
        steps = int(self.trainer.estimated_stepping_batches)
        self.trainer.fit_loop.epoch_loop.max_steps = steps
        self.trainer.fit_loop.max_epochs = -1
        return steps

    def on_validation_epoch_start(self) -> None:
        """Start counting anew."""
        self._all = Validation()
        both = getattr(self.model, "camera", None) and getattr(self.model, "lidar", None)
        wanted = both is not None and self.options.ablation_batches > 0
        self._subset = {sensors: Validation() for sensors in ABLATION} if wanted else {}
        self._streams = {sensors: Stream(self.model) for sensors in ABLATION}

    def validation_step(self, batch: Batch | None, batch_idx: int) -> None:
        """Losses and metrics; on the first batches, those of every sensor alone too."""
        if batch is None:  # nothing of it could be read
            return
        outputs = self._streams[EVERYTHING](batch)
        terms = self.model.loss(outputs, batch)
        losses = {"total": self.model.total_loss(terms), **terms}
        self.log_dict(
            {f"val/{name}": value for name, value in losses.items()},
            batch_size=batch.size,
            sync_dist=True,
        )
        decoded = self.model.decode(outputs, batch)
        self._all.add(decoded, batch)
        if batch_idx >= self.options.ablation_batches:
            return
        for sensors, validation in self._subset.items():
            if sensors != EVERYTHING:
                stream = self._streams[sensors]
                seen = stream(batch, use_camera=sensors.camera, use_lidar=sensors.lidar)
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
            title = f"sensors alone, first {self.options.ablation_batches} validation batches"
            console.print(metrics_table(title, list(self.ablation.items())))
