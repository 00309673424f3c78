"""A published BEVFusion's weights as a state dict of our model, its constants checked."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial

import torch
from torch import Tensor

from ..encoders import LSS
from ..encoders.swin import relative_position_index
from ..model import FusionModel
from ..training.state_file import CheckpointError
from .bevfusion_rules import PREFIXES, Prefixes, Source, rules_of
from .rules import translate


def translate_weights(
    weights: Mapping[str, Tensor], source: Source, model: FusionModel
) -> dict[str, Tensor]:
    """A published state dict as one of ``model``.

    Constants of the published code are compared with ours and not kept.

    Raises:
        CheckpointError: naming every tensor that is unknown, missing, of another shape, or a
            constant that differs.
    """
    prefixes = PREFIXES[source]
    constants = {n: t for n, t in weights.items() if is_constant(n, prefixes)}
    others = {n: t for n, t in weights.items() if n not in constants}
    ours = translate(others, rules_of(source), model.state_dict())
    check_constants(constants, prefixes, model)
    return ours


def is_constant(name: str, prefixes: Prefixes) -> bool:
    """Is it a table that follows from the configuration?"""
    grids = [f"{prefixes.lift}.{part}" for part in ("dx", "bx", "nx", "frustum")]
    return name in grids or name.endswith(".attn.w_msa.relative_position_index")


def check_constants(
    constants: Mapping[str, Tensor], prefixes: Prefixes, model: FusionModel
) -> None:
    """Compare the published tables with what the model computes.

    Raises:
        CheckpointError: naming those that differ or are missing.
    """
    if model.camera is None:
        if constants:
            raise CheckpointError(f"the model has no camera, the checkpoint has {min(constants)}")
        return
    lift, backbone = model.camera.lift, model.camera.backbone
    assert isinstance(lift, LSS)
    frustum = constants.get(f"{prefixes.lift}.frustum", torch.zeros(0, 0, 0, 3))
    expected = {
        f"{prefixes.lift}.{name}": table for name, table in grid_tables(lift, frustum.shape).items()
    }
    index = relative_position_index(backbone.network.stages[0][0].attention.window_size)
    for s, stage in enumerate(backbone.network.stages):
        for b in range(len(stage)):
            name = f"{prefixes.backbone}.stages.{s}.blocks.{b}.attn.w_msa.relative_position_index"
            expected[name] = index
    close = partial(torch.allclose, rtol=1e-5, atol=1e-4)
    wrong = [f"missing {name}" for name in expected if name not in constants]
    wrong += [f"unknown {name}" for name in constants if name not in expected]
    for name, table in expected.items():
        found = constants.get(name)
        if found is not None and (
            found.shape != table.shape or not close(found.double(), table.double())
        ):
            wrong.append(f"{name} has other values")
    if wrong:
        raise CheckpointError(
            "the checkpoint is of a model with another grid, depth range or image size; use a "
            "config with its own:\n  " + "\n  ".join(wrong)
        )


def grid_tables(lift: LSS, frustum: torch.Size) -> dict[str, Tensor]:
    """The published view transform's tables, from our options.

    ``dx`` steps, ``bx`` the first cell's centre, ``nx`` numbers of cells on x, y, z, and the
    ``frustum`` (D, H, W, 3) of u, v in image pixels and depth.
    """
    grid, (low, high) = lift.pool_grid, lift.height_range
    dx = torch.tensor([grid.cell_size, grid.cell_size, high - low])
    lower = torch.tensor([grid.x_range[0], grid.y_range[0], low])
    size = frustum[1:3]
    scale = lift.image_from_feature(8, size)
    v, u = torch.arange(size[0]) * scale[1, 1], torch.arange(size[1]) * scale[0, 0]
    depth = lift.depth_range[0] + lift.depth_step * torch.arange(lift.num_bins)
    depth, v, u = torch.meshgrid(depth, v, u, indexing="ij")
    return {
        "dx": dx,
        "bx": lower + dx / 2,
        "nx": torch.tensor([*grid.shape, 1]),
        "frustum": torch.stack([u, v, depth], -1),
    }
