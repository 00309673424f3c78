"""``bevstack train``: train a model."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

from jsonargparse import ArgumentParser, Namespace

from ..safe_config import check_config

CONFIG = "config.yaml"  # in the run folder: everything resolved


def run_parser() -> ArgumentParser:
    """The options that describe a run; ``config.yaml`` in a run folder holds them all."""
    from ..model import FusionModel
    from ..training.data import NuScenesData
    from ..training.run import TrainingOptions

    parser = ArgumentParser(prog="bevstack train", description="Train a model.")
    parser.add_argument(
        "--config", action="config", help="YAML file; a later one is laid over an earlier one"
    )
    parser.add_class_arguments(FusionModel, "model")
    parser.add_class_arguments(NuScenesData, "data")
    parser.add_class_arguments(TrainingOptions, "training")
    parser.add_argument("--run_folder", type=Path, help="where checkpoints and results go")
    parser.add_argument("--resume", type=bool, default=False, help="go on after an interruption")
    parser.add_argument(
        "--trust",
        type=list[str],
        default=[],
        help="further modules whose classes a config may name",
    )
    return parser


def main(options: list[str]) -> None:
    """Parse the options, keep the resolved config in the run folder, train."""
    for path in _config_files(options):
        check_config(path, _trusted(options))
    parser = run_parser()
    config = parser.parse_args(options)
    if config.run_folder is None:
        raise ValueError("--run_folder is missing; give a new folder for checkpoints and results")
    train(parser, config)


def train(parser: ArgumentParser, config: Namespace) -> None:
    """Train as the parsed config says."""
    import pytorch_lightning as pl

    from ..training.run import train as run_training
    from ..training.saving import LAST

    folder = Path(config.run_folder)
    last = folder / LAST
    if config.resume and not last.exists():
        raise ValueError(f"there is nothing to resume in {folder}: {last} does not exist")
    # Before anything is built: the initial weights are part of what the seed decides.
    pl.seed_everything(config.training.seed, verbose=False)
    parts = parser.instantiate(config)
    folder.mkdir(parents=True, exist_ok=True)
    if not config.resume and not last.exists():
        parser.save(without_session(config), folder / CONFIG, overwrite=True)
    result = run_training(
        parts.model, parts.data, folder, parts.training, last if config.resume else None
    )
    print(f"{result.steps} steps; weights in {result.last}")


def load_run(
    folder: Path, trust: Sequence[str] = (), **data: str | None
) -> tuple[Any, Any, Namespace]:
    """Model with trained weights (the moving average, where there is one), data and config.

    Args:
        folder: a run folder, or an exported model, whose weights are not in the model then.
        trust: further modules whose classes the run's config may name.
        data: options of the data to use instead of the run's; None for the run's.

    Raises:
        ValueError: if it is not a run folder, or config and weights do not fit.
    """
    from ..runtime.manifest import MANIFEST
    from ..training.checkpoint import load_weights
    from ..training.saving import LAST

    path = Path(folder) / CONFIG
    if not path.exists():
        raise ValueError(f"{folder} is not a run folder: it has no {CONFIG}; train one first")
    check_config(path, trust)
    parser = run_parser()
    changes = [f"--data.{name}={value}" for name, value in data.items() if value is not None]
    config = parser.parse_args(["--config", str(path), *changes])
    parts = parser.instantiate(config)
    if not (Path(folder) / MANIFEST).exists():
        load_weights(parts.model, Path(folder) / LAST)
    return parts.model, parts.data, config


def without_session(config: Namespace) -> Namespace:
    """The config without what belongs to this call alone."""
    kept = config.clone()
    for name in ("config", "resume", "run_folder"):
        kept.pop(name, None)
    return kept


def _config_files(options: list[str]) -> list[str]:
    files = [b for a, b in pairwise(options) if a == "--config"]
    return files + [o.removeprefix("--config=") for o in options if o.startswith("--config=")]


def _trusted(options: list[str]) -> list[str]:
    given = [b for a, b in pairwise(options) if a in ("--trust", "--trust+")]
    return [name.strip(" []'\"") for value in given for name in value.split(",")]
