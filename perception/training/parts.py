"""Parts of a model by name: their own learning rates, parts that do not learn, initial weights."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from .checkpoint import read_weights


def belongs(name: str, part: str) -> bool:
    """Is a tensor or module of that dotted name in the part?"""
    return name == part or name.startswith(part + ".")


def check_parts(model: nn.Module, parts: Sequence[str], option: str) -> None:
    """Refuse names that no tensor of the model begins with.

    Raises:
        ValueError: naming the option, the name and the parts there are.
    """
    names = [*model.state_dict()]
    for part in parts:
        if not any(belongs(name, part) for name in names):
            top = sorted({name.split(".")[0] for name in names})
            raise ValueError(
                f"{option} names {part!r}, which the model does not have; it has {top} and their "
                "parts, dotted"
            )


def parameter_groups(
    model: nn.Module,
    weight_decay: float,
    decay_all: bool = False,
    no_decay: Sequence[str] = (),
    lr_factors: Mapping[str, float] | None = None,
    lr: float = 1.0,
) -> list[dict[str, Any]]:
    """The parameters that learn, as groups for an optimizer; the group with the most rate first.

    Args:
        model: whose parameters; names in the other arguments are its own.
        weight_decay: of parameters of two or more dimensions. Biases and norms have no scale to
            shrink.
        decay_all: of all parameters instead.
        no_decay: parts of names that spare a parameter.
        lr_factors: factors on the learning rate by part; the longest name that fits counts.
        lr: the rate that factors are of.
    """
    factors = dict(lr_factors or {})
    check_parts(model, [*factors], "training.lr_factors")
    groups: dict[tuple[float, float], list[Tensor]] = defaultdict(list)
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        fitting = [part for part in factors if belongs(name, part)]
        factor = factors[max(fitting, key=len)] if fitting else 1.0
        decays = (decay_all or parameter.ndim > 1) and not any(part in name for part in no_decay)
        groups[factor, weight_decay if decays else 0.0].append(parameter)
    order = sorted(groups, key=lambda key: (-key[0], -key[1]))
    return [{"params": groups[key], "lr": key[0] * lr, "weight_decay": key[1]} for key in order]


def freeze(model: nn.Module, parts: Sequence[str]) -> None:
    """Take the parts' parameters out of training; :func:`hold` does the rest."""
    check_parts(model, parts, "training.frozen")
    for name, parameter in model.named_parameters():
        if any(belongs(name, part) for part in parts):
            parameter.requires_grad_(False)


def hold(model: nn.Module, frozen: Sequence[str], frozen_norms: Sequence[str]) -> None:
    """Put the frozen parts, and the batch norms of others, into evaluation mode."""
    for name, module in model.named_modules():
        still = frozen_norms if isinstance(module, _BatchNorm) else ()
        if any(belongs(name, part) for part in (*frozen, *still)):
            module.eval()


def start_from(model: nn.Module, source: Path | str, parts: Sequence[str] | None = None) -> str:
    """Copy what fits of another training's weights into ``model``.

    Args:
        model: changed in place.
        source: a run folder or a ``.safetensors`` file; its moving average, where it has one.
        parts: parts of the model to take; None for all.

    Returns:
        An account: per part of the model how many tensors were taken, and what did not fit.

    Raises:
        ValueError: for a part that the model does not have, or if nothing fits.
        CheckpointError: if the file cannot be read.
    """
    from .saving import LAST

    path = Path(source)
    path = path / LAST if path.is_dir() else path
    check_parts(model, parts or (), "training.start_parts")
    state, found = model.state_dict(), read_weights(path)
    wanted = [n for n in state if parts is None or any(belongs(n, part) for part in parts)]
    taken = {n: found[n] for n in wanted if n in found and found[n].shape == state[n].shape}
    if not taken:
        raise ValueError(
            f"training.start_from: nothing in {path} fits this model; its parts are "
            f"{sorted({name.split('.')[0] for name in found})}"
        )
    model.load_state_dict(taken, strict=False)
    return _account(path, wanted, taken, found, state)


def _account(
    path: Path,
    wanted: Sequence[str],
    taken: Mapping[str, Tensor],
    found: Mapping[str, Tensor],
    state: Mapping[str, Tensor],
) -> str:
    lines = [f"starting from {path}: {len(taken)} of {len(state)} tensors"]
    for part in dict.fromkeys(_part_of(name) for name in state):
        names = [name for name in state if _part_of(name) == part]
        lines.append(f"  {part}: {sum(n in taken for n in names)} of {len(names)}")
    for name in wanted:
        if name in found and name not in taken:
            shapes = tuple(found[name].shape), tuple(state[name].shape)
            lines.append(f"  not taken: {name} is {shapes[0]} there, {shapes[1]} here")
    left = [name for name in found if name not in state]
    if left:
        lines.append(f"  left over there: {len(left)} tensors, the first is {left[0]}")
    return "\n".join(lines)


def _part_of(name: str) -> str:
    """camera.backbone, heads.map, lidar: one level down where a part has parts of its own."""
    parts = name.split(".")
    return ".".join(parts[:2]) if parts[0] in ("camera", "heads") else parts[0]
