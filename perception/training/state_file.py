"""Nested training state in one ``.safetensors`` file.

Tensors are stored as tensors; the tree they hang in, and every plain value beside them, is JSON in
the file's metadata. Any safetensors reader opens the file, and reading it never runs code from it.

The JSON writes None, booleans, integers, strings and finite floats as themselves (Python prints
floats so that they read back exactly) and lists as lists; everything else is an object with one
key: ``{"dict": [[key, value], ...]}``, ``{"tuple": [...]}``, ``{"float": "nan"}``,
``{"tensor": name}``.
"""

from __future__ import annotations

import json
import math
import os
import struct
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from ...datasets.errors import DataError

TREE = "bevstack.tree"  # key of the metadata entry that holds the JSON

# Names of the element types in the safetensors format.
DTYPE_NAMES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}


class CheckpointError(DataError):
    """A checkpoint that cannot be written or used; the message names the file and the remedy."""


def pack(value: Any, name: str = "", tensors: dict[str, Tensor] | None = None) -> tuple[Any, dict]:
    """Split nested state into JSON and tensors.

    Args:
        value: dicts, lists, tuples, tensors, strings, numbers, booleans and None, nested.
        name: where ``value`` stands in the whole, parts joined by ``/``.
        tensors: the dict to add tensors to; a new one if None.

    Returns:
        The value as JSON can write it, and the tensors by name.

    Raises:
        CheckpointError: for a value of any other type, naming its place.
    """
    tensors = {} if tensors is None else tensors
    if value is None or isinstance(value, bool | str):
        return value, tensors
    if isinstance(value, int | np.integer):
        return int(value), tensors
    if isinstance(value, float | np.floating):
        number = float(value)
        return (number if math.isfinite(number) else {"float": repr(number)}), tensors
    if isinstance(value, Tensor):
        if value.dtype not in DTYPE_NAMES:
            raise CheckpointError(
                f"checkpoint entry {name}: tensors of {value.dtype} have no place"
            )
        while name in tensors:  # two paths that read the same, such as "a/b" and "a" -> "b"
            name += "'"
        tensors[name] = value.detach()
        return {"tensor": name}, tensors
    if isinstance(value, Mapping):
        items = [
            [_pack_key(k, name), pack(v, _join(name, k), tensors)[0]] for k, v in value.items()
        ]
        return {"dict": items}, tensors
    if isinstance(value, list | tuple):
        parts = [pack(v, _join(name, i), tensors)[0] for i, v in enumerate(value)]
        return (parts if isinstance(value, list) else {"tuple": parts}), tensors
    raise CheckpointError(
        f"checkpoint entry {name or 'top level'} is a {type(value).__qualname__}, which a "
        "checkpoint cannot hold; store it as tensors, numbers, strings, lists, tuples or dicts"
    )


def _join(name: str, key: Any) -> str:
    return f"{name}/{key}" if name else str(key)


def _pack_key(key: Any, name: str) -> Any:
    if key is None or isinstance(key, bool | int | str):
        return key
    raise CheckpointError(f"checkpoint entry {name} has a key of type {type(key).__qualname__}")


def unpack(tree: Any, read: Callable[[str], Tensor]) -> Any:
    """Undo :func:`pack`; ``read`` gives the tensor of a name."""
    if isinstance(tree, list):
        return [unpack(part, read) for part in tree]
    if not isinstance(tree, dict):
        return tree
    ((kind, content),) = tree.items()
    if kind == "dict":
        return {key: unpack(value, read) for key, value in content}
    if kind == "tuple":
        return tuple(unpack(part, read) for part in content)
    if kind == "float":
        return float(content)
    if kind == "tensor":
        return read(content)
    raise ValueError(f"unknown kind of entry {kind!r}")


def write_state(state: Mapping[str, Any], path: str | os.PathLike) -> None:
    """Write nested state to ``path``, all or nothing.

    The file is written under a temporary name in the same folder, flushed to the disk and then
    renamed, so ``path`` is always either the previous file or the complete new one.

    Raises:
        CheckpointError: for state that cannot be stored, and when the disk is full.
    """
    path = Path(path)
    tree, tensors = pack(state)
    # Widest elements first, so that each tensor starts at a multiple of its element size.
    tensors = dict(sorted(tensors.items(), key=lambda item: -item[1].element_size()))
    header = _header(tree, tensors)
    size = len(header) + sum(t.numel() * t.element_size() for t in tensors.values())
    partial = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, partial = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".part", dir=path.parent)
        with os.fdopen(handle, "wb") as file:
            file.write(header)
            for tensor in tensors.values():
                file.write(_bytes(tensor))
            file.flush()
            os.fsync(file.fileno())
        os.chmod(partial, 0o644)  # mkstemp's 0600 would lock out the rest of a team
        os.replace(partial, path)
        partial = None
    except OSError as error:
        kept = "; the previous checkpoint there is intact" if path.exists() else ""
        raise CheckpointError(
            f"could not write the checkpoint {path} ({error.strerror or error}){kept}; it needs "
            f"{size:,} bytes: free that much in {path.parent}, or choose another run folder"
        ) from error
    finally:
        if partial is not None:
            Path(partial).unlink(missing_ok=True)


def _header(tree: Any, tensors: Mapping[str, Tensor]) -> bytes:
    entries: dict[str, Any] = {"__metadata__": {TREE: json.dumps(tree, allow_nan=False)}}
    start = 0
    for name, tensor in tensors.items():
        end = start + tensor.numel() * tensor.element_size()
        entries[name] = {
            "dtype": DTYPE_NAMES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [start, end],
        }
        start = end
    text = json.dumps(entries).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text


def _bytes(tensor: Tensor) -> memoryview:
    flat = tensor.cpu().contiguous().reshape(-1)
    return flat.view(torch.uint8).numpy().data


def read_state(path: str | os.PathLike, entry: Callable[[dict], Any] | None = None) -> Any:
    """Read what :func:`write_state` wrote, tensors on the CPU.

    Args:
        path: the file.
        entry: picks the part of the tree to read, so that the other tensors stay on the disk; it
            gets the top level as a dict of packed entries. None reads everything.

    Raises:
        CheckpointError: if the file is missing, damaged or not one of ours.
    """
    path = Path(path)
    if not path.is_file():
        raise CheckpointError(
            f"there is no checkpoint {path}; give the path of a .safetensors file"
        )
    try:
        with safe_open(path, framework="pt") as file:
            text = (file.metadata() or {}).get(TREE)
            tree = json.loads(text) if text else _tree_of_weights(file.keys())
            return unpack(tree if entry is None else entry(dict(tree["dict"])), file.get_tensor)
    except (SafetensorError, json.JSONDecodeError, ValueError, OSError) as error:
        if isinstance(error, CheckpointError):
            raise
        raise CheckpointError(
            f"{path} is damaged or not a safetensors checkpoint ({error}); "
            "use another checkpoint of the run, or train again"
        ) from error


def _tree_of_weights(names: list[str]) -> Any:
    # A bare weights file, as published ones are: the tensors are the model's state.
    return {"dict": [["state_dict", {"dict": [[name, {"tensor": name}] for name in names]}]]}
