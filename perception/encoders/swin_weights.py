"""Weights of a ``transformers`` Swin, read into ours."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

# Ours by theirs. A classifier's file has "swin." before every name, and the names of its layers
# are those of the first releases, which are the ones that are stored. Both forms are listed.
NAMES = (
    (r"embeddings\.patch_embeddings\.projection\.", "patch."),
    (r"embeddings\.norm\.", "patch_norm."),
    (r"encoder\.layers\.(\d+)\.blocks\.", r"stages.\1."),
    (r"encoder\.layers\.(\d+)\.downsample\.", r"merges.\1."),
    (r"hidden_states_norms\.", "norms."),
    (r"\.layernorm_before\.", ".norm1."),
    (r"\.layernorm_after\.", ".norm2."),
    (r"\.attention\.(self\.query|q_proj)\.", ".attention.qkv.0."),
    (r"\.attention\.(self\.key|k_proj)\.", ".attention.qkv.1."),
    (r"\.attention\.(self\.value|v_proj)\.", ".attention.qkv.2."),
    (r"\.attention\.(output\.dense|o_proj)\.", ".attention.out."),
    (r"\.attention\.(self|relative_position_bias)\.relative_position_bias_table",
     ".attention.bias_table"),
    (r"\.(intermediate\.dense|mlp\.fc1)\.", ".linear1."),
    (r"\.(output\.dense|mlp\.fc2)\.", ".linear2."),
)  # fmt: skip


def load_transformers_swin(network: torch.nn.Module, folder: Path) -> None:
    """Copy the weights in ``folder`` into a ``SwinNetwork``.

    Output norms are no part of a classifier and keep their start where the file has none.

    Raises:
        ValueError: if the folder has no weights, or they do not fit.
    """
    from safetensors.torch import load_file

    path = Path(folder) / "model.safetensors"
    if not path.is_file():
        raise ValueError(f"{folder} has no model.safetensors; give a folder saved by transformers")
    found = translated(load_file(path))
    state = network.state_dict()
    wrong = [
        name
        for name, tensor in state.items()
        if (name in found or not name.startswith("norms."))
        and (name not in found or found[name].shape != tensor.shape)
    ]
    if wrong:
        raise ValueError(
            f"the weights in {folder} do not fit the configured Swin: {len(wrong)} tensors are "
            f"missing or of another shape, the first is {wrong[0]}"
        )
    network.load_state_dict({n: t for n, t in found.items() if n in state}, strict=False)


def translated(weights: dict[str, Tensor]) -> dict[str, Any]:
    """Tensors by our names; query, key and value are joined. The patch order is the same."""
    ours = {}
    for name, tensor in weights.items():
        name = name.removeprefix("swin.")
        for theirs, replacement in NAMES:
            name = re.sub(theirs, replacement, name)
        ours[name] = tensor
    for name in [n for n in ours if ".qkv.0." in n]:
        parts = [ours.pop(name.replace(".qkv.0.", f".qkv.{i}.")) for i in range(3)]
        ours[name.replace(".qkv.0.", ".qkv.")] = torch.cat(parts)
    return ours
