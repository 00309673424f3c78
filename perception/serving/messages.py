"""Named arrays and named texts in one piece of bytes: the layout of safetensors.

    8 bytes   N, the length of the header: unsigned, little endian
    N bytes   JSON: {"NAME": {"dtype": "F32", "shape": [P, 5], "data_offsets": [from, to]}, ...,
              "__metadata__": {"KEY": "text", ...}}
    the rest  the arrays, row-major and little endian, one after the other, without gaps

Chosen because nothing in it can run, numbers travel as they lie in memory, and libraries in many
languages read and write it already (https://github.com/huggingface/safetensors).
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any, NoReturn

import numpy as np
from numpy.typing import NDArray

DTYPES = {
    "U8": np.dtype("u1"),
    "I32": np.dtype("<i4"),
    "I64": np.dtype("<i8"),
    "F16": np.dtype("<f2"),
    "F32": np.dtype("<f4"),
    "F64": np.dtype("<f8"),
}
MAX_HEADER_BYTES = 1 << 20
_NAMES = {dtype: name for name, dtype in DTYPES.items()}
_METADATA = "__metadata__"


class MessageError(ValueError):
    """A message that cannot be used.

    Args:
        field: what is wrong in it: the name of an array, or a place in one of the texts.
        reason: what was found and what is expected.
    """

    def __init__(self, field: str, reason: str):
        super().__init__(f"{field}: {reason}")
        self.field, self.reason = field, reason


def pack(arrays: Mapping[str, NDArray], metadata: Mapping[str, str]) -> bytes:
    """The message that holds these arrays and texts.

    Raises:
        ValueError: if an array's type is none of ``DTYPES``.
    """
    # Wide numbers first and a header padded to 8 bytes: every array is aligned for its reader.
    ordered = sorted(arrays.items(), key=lambda item: -item[1].dtype.itemsize)
    header: dict[str, Any] = {_METADATA: dict(metadata)}
    parts, end = [], 0
    for name, array in ordered:
        dtype = array.dtype.newbyteorder("<")
        if dtype not in _NAMES:
            raise ValueError(f"{name} is {array.dtype}; a message holds {', '.join(DTYPES)}")
        data = np.ascontiguousarray(array, dtype)
        begin, end = end, end + data.nbytes
        header[name] = {
            "dtype": _NAMES[dtype], "shape": [*array.shape], "data_offsets": [begin, end]
        }  # fmt: skip
        parts.append(data.data)
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return b"".join([len(text).to_bytes(8, "little"), text, *parts])


def unpack(message: bytes | bytearray) -> tuple[dict[str, NDArray], dict[str, str]]:
    """Arrays and texts of a message. The arrays share its memory, except where it is unaligned.

    Raises:
        MessageError: if the message is not whole or not of this layout.
    """
    if len(message) < 8:
        raise MessageError("header", f"the message has {len(message)} bytes; its length alone is 8")
    length, rest = int.from_bytes(message[:8], "little"), len(message) - 8
    if length > min(rest, MAX_HEADER_BYTES):
        raise MessageError(
            "header",
            f"its length is given as {length} bytes; {rest} follow, and {MAX_HEADER_BYTES} are "
            "the most",
        )
    header = parse_json(bytes(message[8 : 8 + length]), "header")
    metadata = header.pop(_METADATA, {})
    if not isinstance(metadata, dict) or not all(isinstance(v, str) for v in metadata.values()):
        raise MessageError(_METADATA, "is not an object of strings")
    arrays, end = {}, 0
    places = {name: _place(name, entry) for name, entry in header.items()}
    for name, (dtype, shape, begin, stop) in sorted(places.items(), key=lambda item: item[1][2:]):
        if begin != end or stop > rest - length:
            raise MessageError(
                name,
                f"data_offsets are [{begin}, {stop}]; the array before ends at {end} and the data "
                f"at {rest - length}",
            )
        end, count = stop, math.prod(shape)
        array = np.frombuffer(message, dtype, count, 8 + length + begin).reshape(shape)
        arrays[name] = np.require(array, requirements="A")
    if end != rest - length:
        raise MessageError("header", f"{rest - length} bytes of data follow, it describes {end}")
    return arrays, metadata


def parse_json(text: str | bytes, where: str) -> dict[str, Any]:
    """A JSON object from a message.

    Raises:
        MessageError: if it is none.
    """

    def refuse(constant: str) -> NoReturn:
        raise ValueError(f"{constant} is not JSON")

    try:
        content = json.loads(text, parse_constant=refuse)
    except (ValueError, RecursionError) as error:
        raise MessageError(where, f"is not JSON: {error}") from error
    if not isinstance(content, dict):
        raise MessageError(where, "is not a JSON object")
    return content


def _place(name: str, entry: Any) -> tuple[np.dtype, tuple[int, ...], int, int]:
    """Type, shape, begin and end of an array, from its entry in the header."""
    if not isinstance(entry, dict) or set(entry) != {"dtype", "shape", "data_offsets"}:
        raise MessageError(name, "its entry must have dtype, shape and data_offsets")
    dtype = DTYPES.get(entry["dtype"]) if isinstance(entry["dtype"], str) else None
    if dtype is None:
        raise MessageError(name, f"dtype is {entry['dtype']!r}; expected one of {[*DTYPES]}")
    shape, offsets = entry["shape"], entry["data_offsets"]
    if not _are_counts(shape) or len(shape) > 8 or max(shape, default=0) > 1 << 40:
        raise MessageError(name, f"shape is {shape!r}; expected a list of at most 8 lengths")
    if not _are_counts(offsets) or len(offsets) != 2:
        raise MessageError(name, f"data_offsets are {offsets!r}; expected where it begins and ends")
    if offsets[1] - offsets[0] != math.prod(shape) * dtype.itemsize:
        raise MessageError(
            name,
            f"{offsets[1] - offsets[0]} bytes are given for shape {shape} of {entry['dtype']}, "
            f"which takes {math.prod(shape) * dtype.itemsize}",
        )
    return dtype, tuple(shape), offsets[0], offsets[1]


def _are_counts(values: Any) -> bool:
    return isinstance(values, list) and all(type(v) is int and v >= 0 for v in values)
