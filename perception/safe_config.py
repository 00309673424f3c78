"""Configs name classes; this decides which ones may be imported."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

import yaml

TRUSTED_MODULES = ("bevstack", "torch", "transformers")


def class_paths(node: object) -> Iterator[str]:
    """Every value of a ``class_path`` key in a parsed config, however deep."""
    if isinstance(node, dict):
        for key, value in node.items():
            if key == "class_path" and isinstance(value, str):
                yield value
            yield from class_paths(value)
    elif isinstance(node, list):
        for value in node:
            yield from class_paths(value)


def check_config(path: str | Path, trust: Iterable[str] = ()) -> None:
    """Refuse a config that names a class outside the trusted modules.

    Importing a class runs its module, so a config from elsewhere could run any code.

    Args:
        path: YAML file.
        trust: further top-level modules, from the command line.

    Raises:
        ValueError: naming the class and how to allow it, or what is wrong with the file.
    """
    try:
        config = yaml.safe_load(Path(path).read_text())
    except OSError as error:
        raise ValueError(f"{path}: cannot read the config: {error.strerror}") from error
    except yaml.YAMLError as error:
        raise ValueError(f"{path} is not valid YAML: {error}") from error
    allowed = {*TRUSTED_MODULES, *trust}
    for name in class_paths(config):
        module = name.split(".")[0]
        if module not in allowed:
            raise ValueError(
                f"{path} names the class {name}, which is outside {', '.join(sorted(allowed))}; "
                f"if you trust it, add --trust {module}"
            )
