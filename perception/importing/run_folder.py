"""A run folder, as ``bevstack train`` would have left it, from a published checkpoint."""

from __future__ import annotations

from importlib import resources
from pathlib import Path
from typing import Literal

from ..training.state_file import CheckpointError, write_state
from .bevfusion import translate_weights
from .bevfusion_rules import Source
from .published import read_published

Task = Literal["det", "seg", "lidar_det", "camera_det"]  # names of the configs in configs/bevfusion


def import_checkpoint(checkpoint: Path, folder: Path, source: Source, task: Task) -> int:
    """Write the config and the weights of a published BEVFusion.

    Args:
        checkpoint: the published ``.pth`` or ``.safetensors``.
        folder: a new run folder.
        source: who published it.
        task: detection, map segmentation, or detection by LiDAR or by cameras alone.

    Returns:
        The number of parameters and statistics that were taken over.

    Raises:
        CheckpointError: if the checkpoint cannot be read or is not of this architecture.
        ValueError: if the folder already holds a run, or nobody published such a model.
    """
    from ..commands.train import CONFIG, run_parser, without_session
    from ..training.saving import LAST

    if source == "mmdet3d" and task in ("seg", "camera_det"):
        raise ValueError(f"mmdetection3d published no BEVFusion for {task}; use det or lidar_det")
    folder = Path(folder)
    if (folder / CONFIG).exists() or (folder / LAST).exists():
        raise ValueError(f"{folder} already holds a run; give a new folder")
    weights = read_published(checkpoint)
    parser = run_parser()
    options = ["--config", str(_shipped(task))]
    if source == "mmdet3d":  # its boxes stood where they are
        options += ["--model.heads.detection.init_args.height_of=middle"]
    config = parser.parse_args(options)
    try:
        state = translate_weights(weights, source, parser.instantiate(config).model)
    except CheckpointError as error:
        raise CheckpointError(f"{checkpoint}: {error}") from error
    folder.mkdir(parents=True, exist_ok=True)
    write_state({"state_dict": state}, folder / LAST)
    parser.save(without_session(config), folder / CONFIG, overwrite=True)
    return sum(tensor.numel() for tensor in state.values())


def _shipped(task: Task) -> Path:
    return Path(str(resources.files("bevstack.configs") / "bevfusion" / f"{task}.yaml"))
