"""How to train: every option of ``bevstack train`` that is neither model nor data."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from .balance import EqualNorms, PCGrad, UncertaintyWeights
from .schedule import Schedule


@dataclass(frozen=True)
class TrainingOptions:
    """How to train.

    Args:
        lr: peak learning rate for a total batch of ``lr_batch``; scaled to the actual one.
        lr_batch: the total batch (processes x batch x accumulation) that ``lr`` is stated for.
        lr_factors: factors on the learning rate of parts of the model by name, ``camera.backbone``
            for instance; the longest name that fits a parameter counts.
        weight_decay: of AdamW, for weights of two or more dimensions.
        decay_all: let biases and norms decay too, as published models did.
        no_decay: parts of parameters' names that spare them, ``bias_table`` for instance.
        warmup: the part of the training in which the learning rate rises.
        schedule: the learning rate as a factor on its peak; null for one cycle with ``warmup``.
        beta1_schedule: AdamW's beta1 as a factor on 0.9; null leaves it there.
        start_from: run folder or ``.safetensors`` whose weights this training starts from, as far
            as names and shapes match; what does not match is counted and named.
        start_parts: parts of the model that are taken from there; null for all.
        frozen: parts of the model that do not learn: no gradient, norm statistics and dropout as
            in evaluation.
        frozen_norms: parts of the model whose batch norms keep their statistics.
        weighting: learned weights of the tasks, made from their names; null for the model's
            ``task_weights`` alone.
        gradient_balance: weighs the tasks' gradients at the shared map, made from their names;
            null adds them.
        log_gradients: write the norm and the cosines of the tasks' gradients at the shared map to
            the logs; balancing does so too.
        epochs: length of the training, unless one of the next two is given.
        max_steps: length in optimizer steps.
        max_seconds: length in wall-clock seconds, without the last validation.
        accumulate: forward passes per optimizer step.
        clip: largest norm of the gradient.
        precision: ``32-true``, ``bf16-mixed`` or ``16-mixed``.
        ema_decay: of the moving average of the weights; null for none.
        accelerator: ``auto``, ``cpu`` or ``gpu``.
        devices: number of devices, or ``auto``; on CPU, processes.
        strategy: Lightning's strategy; ``auto`` takes DDP for more than one device.
        num_nodes: machines that train together.
        validate_every: epochs between validations; 0 for none.
        val_batches: validate on no more batches than this; null for all.
        ablation_batches: validation batches on which each sensor alone is measured too.
        save_every: optimizer steps between two writes of the last checkpoint.
        tensorboard: write TensorBoard logs to the run folder.
        progress_seconds: time between two lines of progress where there is no terminal.
        seed: of the layers' randomness (the data has its own).
        deterministic: use deterministic algorithms only.
    """

    lr: float = 1e-3
    lr_batch: int = 32
    lr_factors: dict[str, float] = field(default_factory=dict)
    weight_decay: float = 0.01
    decay_all: bool = False
    no_decay: Sequence[str] = ()
    warmup: float = 0.3
    schedule: Schedule | None = None
    beta1_schedule: Schedule | None = None
    start_from: Path | None = None
    start_parts: Sequence[str] | None = None
    frozen: Sequence[str] = ()
    frozen_norms: Sequence[str] = ()
    weighting: Callable[[Sequence[str]], UncertaintyWeights] | None = None
    gradient_balance: Callable[[Sequence[str]], EqualNorms | PCGrad] | None = None
    log_gradients: bool = False
    epochs: int = 20
    max_steps: int | None = None
    max_seconds: float | None = None
    accumulate: int = 1
    clip: float = 35.0
    precision: Literal["32-true", "bf16-mixed", "16-mixed"] = "32-true"
    ema_decay: float | None = 0.999
    accelerator: str = "auto"
    devices: int | str = "auto"
    strategy: str = "auto"
    num_nodes: int = 1
    validate_every: int = 1
    val_batches: int | None = None
    ablation_batches: int = 8
    save_every: int = 500
    tensorboard: bool = False
    progress_seconds: float = 10.0
    seed: int = 0
    deterministic: bool = False

    def __post_init__(self) -> None:
        if self.max_steps is not None and self.max_seconds is not None:
            raise ValueError("training.max_steps and training.max_seconds are given; choose one")
