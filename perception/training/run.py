"""Run a training in a run folder."""

from __future__ import annotations

import logging
import math
import warnings
from dataclasses import dataclass
from pathlib import Path

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
from .options import TrainingOptions
from .parts import start_from
from .progress import progress_callback
from .saving import RandomState, SaveCheckpoints
from .schedule import TimeBudget

LOSSES = "losses.csv"


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
    if resume is None and options.start_from is not None:
        print(start_from(model, options.start_from, options.start_parts), flush=True)
    module = TrainingModule(model, options, budget)
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
        warnings.filterwarnings("ignore", ".*in eval mode at the start")  # frozen parts are
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
