"""Dataclasses to JSON and back, checked field by field; no code runs from what is read."""

from __future__ import annotations

import types
import typing
from collections.abc import Mapping
from dataclasses import MISSING, fields, is_dataclass
from typing import Any, Literal, TypeVar, get_args, get_origin

T = TypeVar("T")


def to_json(value: Any) -> Any:
    """Plain lists, dicts, numbers and strings of a dataclass."""
    if is_dataclass(value):
        return {f.name: to_json(getattr(value, f.name)) for f in fields(value)}
    if isinstance(value, dict):
        return {name: to_json(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [to_json(item) for item in value]
    return value


def from_json(kind: type[T], value: Any, where: str = "") -> T:
    """Build ``kind``, a dataclass, from parsed JSON.

    A union of dataclasses is told apart by their ``kind`` fields, which are literals.

    Raises:
        ValueError: naming the field that is missing, unknown or of another type.
    """
    if not isinstance(value, dict):
        raise ValueError(f"{where or 'the document'} is not an object")
    hints = typing.get_type_hints(kind)
    known = {f.name: f for f in fields(kind)}  # pyright: ignore[reportArgumentType]
    if unknown := set(value) - set(known):
        raise ValueError(f"{where or 'the document'} has the unknown field {min(unknown)!r}")
    found = {}
    for name, field in known.items():
        place = f"{where}.{name}".lstrip(".")
        if name in value:
            found[name] = _convert(hints[name], value[name], place)
        elif field.default is MISSING and field.default_factory is MISSING:
            raise ValueError(f"{place} is missing")
    return kind(**found)


def _convert(hint: Any, value: Any, where: str) -> Any:
    origin, args = get_origin(hint), get_args(hint)
    if origin in (typing.Union, types.UnionType):
        return _convert_union(args, value, where)
    if origin is Literal:
        return _checked(value in args, value, where, f"one of {args}")
    if origin is tuple:
        _checked(isinstance(value, list), value, where, "a list")
        if args[-1] is not Ellipsis:
            _checked(len(value) == len(args), value, where, f"a list of {len(args)}")
        inner = args[:1] * len(value) if args[-1] is Ellipsis else args
        return tuple(_convert(t, v, f"{where}[{i}]") for i, (t, v) in enumerate(zip(inner, value)))
    if origin in (dict, Mapping):
        _checked(isinstance(value, dict), value, where, "an object")
        return {name: _convert(args[1], item, f"{where}.{name}") for name, item in value.items()}
    if is_dataclass(hint):
        return from_json(hint, value, where)  # pyright: ignore[reportArgumentType]
    if hint is Any:
        return value
    if hint is float:
        number = isinstance(value, int | float) and not isinstance(value, bool)
        return float(_checked(number, value, where, "a number"))
    return _checked(type(value) is hint, value, where, hint.__name__)


def _convert_union(args: tuple, value: Any, where: str) -> Any:
    if value is None and type(None) in args:
        return None
    options = [a for a in args if a is not type(None)]
    if isinstance(value, dict) and len(options) > 1:
        for option in options:
            if value.get("kind") in get_args(typing.get_type_hints(option).get("kind")):
                return from_json(option, value, where)
        raise ValueError(f"{where}.kind is {value.get('kind')!r}, which this version does not know")
    for option in options[:-1]:
        try:
            return _convert(option, value, where)
        except ValueError:
            continue
    return _convert(options[-1], value, where)


def _checked(right: bool, value: Any, where: str, expected: str) -> Any:
    if not right:
        raise ValueError(f"{where} is {value!r}; expected {expected}")
    return value
