"""State dicts made to the manifests of the published models."""

from __future__ import annotations

import json
from pathlib import Path

import torch

FACTS = Path(__file__).resolve().parents[3] / "shared" / "facts"
BOUNDS = {  # grid of the view transform: x and y range and step before its stride-2 convolution
    "det": (-54.0, 54.0, 0.3),
    "seg": (-51.2, 51.2, 0.4),
}


def manifest(task: str) -> list[dict]:
    """Names, shapes and types of the published model; skips the test where they are not."""
    import pytest

    path = FACTS / f"mit_bevfusion_{task}_state_dict.json"
    if not path.is_file():
        pytest.skip(f"needs the manifest {path}")
    return json.loads(path.read_text())


def published_state(task: str, seed: int = 0) -> dict[str, torch.Tensor]:
    """Random weights of a sane size, statistics, and the constants as published."""
    generator = torch.Generator().manual_seed(seed)
    state = {}
    for entry in manifest(task):
        name, shape = entry["name"], entry["shape"]
        if name.split(".")[-1] in CONSTANTS:
            state[name] = constant(task, name)
        elif name.endswith("num_batches_tracked"):
            state[name] = torch.tensor(1000 + len(state))
        elif name.endswith("running_var"):
            state[name] = torch.rand(shape, generator=generator) + 0.5
        else:
            state[name] = torch.randn(shape, generator=generator) / fan_in(name, shape) ** 0.5
        assert list(state[name].shape) == shape
        assert str(state[name].dtype) == f"torch.{entry['dtype']}"
    return state


def fan_in(name: str, shape: list[int]) -> float:
    """Inputs of one output, so that activations keep their size; 4 for vectors."""
    if len(shape) < 2 or "bias_table" in name:
        return 4
    count = torch.Size(shape).numel()
    return count / (shape[-1] if len(shape) == 5 else shape[0])  # spconv 1.x: outputs last


def index_of_window(size: int = 7) -> torch.Tensor:
    """mmdetection's table: a sequence added to itself turned round."""
    rows = torch.arange(0, (2 * size - 1) * size, 2 * size - 1)
    sequence = (rows[:, None] + torch.arange(size)).flatten()
    return (sequence[:, None] + sequence[None]).flip(1).contiguous()


def constant(task: str, name: str) -> torch.Tensor:
    """A table of the published model, from its options alone."""
    part = name.split(".")[-1]
    if part == "relative_position_index":
        return index_of_window()
    low, high, step = BOUNDS[task]
    if part == "dx":
        return torch.tensor([step, step, 20.0])
    if part == "bx":
        return torch.tensor([low + step / 2, low + step / 2, 0.0])
    if part == "nx":
        return torch.tensor([round((high - low) / step)] * 2 + [1])
    depth = torch.arange(1.0, 60.0, 0.5).view(-1, 1, 1).expand(-1, 32, 88)
    u = torch.linspace(0, 703, 88).view(1, 1, -1).expand(118, 32, -1)
    v = torch.linspace(0, 255, 32).view(1, -1, 1).expand(118, -1, 88)
    return torch.stack([u, v, depth], -1)


CONSTANTS = ("relative_position_index", "dx", "bx", "nx", "frustum")
