"""Run a training in a run folder."""

from __future__ import annotations

import logging
import math
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import pytorch_lightning as pl
import torch
from pytorch_lightning.loggers import TensorBoardLogger

from ...datasets.errors import DataError
from ..model import FusionModel
from .checkpoint import SafetensorsIO
from .data import ReportSkipped
from .ema import EMA
from .guard import FiniteGuard
from .loss_log import LossLog
from .module import TrainingModule
from .progress import progress_callback
from .saving import RandomState, SaveCheckpoints
from .schedule import TimeBudget

LOSSES = "losses.csv"


@dataclass(frozen=True)
class TrainingOptions:
    """How to train.

    Args:
        lr: peak learning rate for a total batch of ``lr_batch``; scaled to the actual one.
        lr_batch: the total batch (processes x batch x accumulation) that ``lr`` is stated for.
        weight_decay: of AdamW.
        warmup: the part of the training in which the learning rate rises.
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
    weight_decay: float = 0.01
    warmup: float = 0.3
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


@dataclass(frozen=True)
class TrainingResult:
    """What a training left behind."""

    last: Path  # the newest checkpoint
    best: Path | None  # the one with the best validation; None without validation
    steps: int  # optimizer steps in all
    metrics: dict[str, float]  # of the last validation


def train(
    model: FusionModel,
    data: pl.LightningDataModule,
    run_folder: Path | str,
    options: TrainingOptions | None = None,
    resume: Path | str | None = None,
    callbacks: list[pl.Callback] | None = None,
) -> TrainingResult:
    """Train a model.

    Writes ``last.safetensors``, ``best.safetensors`` and ``losses.csv`` into the run folder. The
    model is left with the weights of the last step; ``load_weights`` gives the average.

    Args:
        model: a ``FusionModel``; seeding its initialisation is up to the caller.
        data: the training and validation data.
        run_folder: where to write.
        options: how to train.
        resume: a checkpoint of the same model, data and options to go on from.
        callbacks: more Lightning callbacks.

    Raises:
        DataError: if the folder holds another run, or data or checkpoint cannot be used.
        NonFiniteError: if a loss or gradient becomes NaN or infinite.
    """
    options, run_folder = options or TrainingOptions(), Path(run_folder)
    saving = SaveCheckpoints(run_folder, options.save_every)
    if resume is None and saving.last.exists():
        raise DataError(
            f"{run_folder} already holds a training; go on with --resume true, or choose "
            "another run folder"
        )
    pl.seed_everything(options.seed, workers=False, verbose=False)
    budget = TimeBudget(options.max_seconds) if options.max_seconds else None
    module = TrainingModule(
        model,
        options.lr,
        options.lr_batch,
        options.weight_decay,
        options.warmup,
        options.ablation_batches,
        budget,
    )
    parts = [
        EMA(options.ema_decay) if options.ema_decay is not None else None,
        budget,
        FiniteGuard(),
        LossLog(run_folder / LOSSES),
        ReportSkipped(),
        progress_callback(options.progress_seconds),
        RandomState(),
        saving,
        *(callbacks or ()),
    ]
    # Its notes on devices and its advertisements are no news.
    logging.getLogger("pytorch_lightning").setLevel(logging.WARNING)
    trainer = make_trainer(options, run_folder, [part for part in parts if part is not None])
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*LeafSpec")
        warnings.filterwarnings("ignore", ".*your dataloader is not resumable")  # the sampler is
        warnings.filterwarnings("ignore", ".*does not have many workers")
        warnings.filterwarnings("ignore", ".*smaller than the logging interval")
        warnings.filterwarnings("ignore", ".*Detected call of `lr_scheduler.step")
        trainer.fit(module, datamodule=data, ckpt_path=resume)
    best = saving.best if saving.best_score is not None else None
    return TrainingResult(saving.last, best, trainer.global_step, module.metrics)


def make_trainer(
    options: TrainingOptions, run_folder: Path, callbacks: list[pl.Callback]
) -> pl.Trainer:
    """Lightning's Trainer with these options."""
    by_epochs = options.max_steps is None and options.max_seconds is None
    validates = options.validate_every > 0
    return pl.Trainer(
        default_root_dir=run_folder,
        accelerator=options.accelerator,
        devices=options.devices,
        strategy=options.strategy,
        num_nodes=options.num_nodes,
        precision=options.precision,
        max_epochs=options.epochs if by_epochs else -1,
        max_steps=options.max_steps if options.max_steps is not None else -1,
        accumulate_grad_batches=options.accumulate,
        gradient_clip_val=options.clip if math.isfinite(options.clip) else None,
        check_val_every_n_epoch=options.validate_every if validates else 1,
        limit_val_batches=(options.val_batches or 1.0) if validates else 0,
        num_sanity_val_steps=0,  # a resumed training must not differ from an uninterrupted one
        use_distributed_sampler=False,  # ours deals the samples out
        deterministic=options.deterministic,
        benchmark=torch.cuda.is_available() and not options.deterministic,
        callbacks=callbacks,
        plugins=[SafetensorsIO()],
        logger=_tensorboard(run_folder) if options.tensorboard else False,
        log_every_n_steps=10,
        enable_checkpointing=True,
        enable_model_summary=False,
    )


def _tensorboard(run_folder: Path) -> TensorBoardLogger:
    return TensorBoardLogger(run_folder, name="tensorboard", version="")
