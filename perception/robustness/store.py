"""Finished cells on the disk: whole files, one process at a time for each.

A cell is claimed by a lock on a file beside it. The lock belongs to the process, so the claim of a
killed one is free at once (and, unlike ``flock``, its data-loading children do not keep it).
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ...datasets.errors import DataError
from .cells import Cell

SETUP = "setup.json"


class CellStore:
    """The cells of one model on one set of frames.

    Args:
        folder: made if missing.
        setup: what every cell depends on; all processes and later runs must give the same.

    Raises:
        ValueError: if the folder holds cells of another setup.
    """

    def __init__(self, folder: Path | str, setup: Mapping[str, Any]) -> None:
        self.folder = Path(folder)
        self.folder.mkdir(parents=True, exist_ok=True)
        path, setup = self.folder / SETUP, dict(setup)
        if not path.exists():
            write_json(path, setup)
        before = read_json(path)
        if different := sorted(k for k in before | setup if before.get(k) != setup.get(k)):
            changes = ", ".join(f"{k} {before.get(k)} (now {setup.get(k)})" for k in different)
            raise ValueError(
                f"{self.folder} holds cells that were measured with {changes}; give another "
                "--out, or delete that folder"
            )

    def path(self, cell: Cell) -> Path:
        """Where the cell's result is, or will be."""
        return self.folder / f"{cell.key}.json"

    def read(self, cell: Cell) -> dict[str, Any] | None:
        """The cell's result; None if it is not finished, or was measured with other parameters."""
        if not (path := self.path(cell)).exists():
            return None
        found = read_json(path)
        return found if found.get("parameters") == cell.parameters else None

    def write(self, cell: Cell, result: Mapping[str, Any]) -> None:
        """Keep a result; the file appears whole or not at all."""
        write_json(self.path(cell), result)

    @contextmanager
    def claim(self, cell: Cell) -> Iterator[bool]:
        """Hold the cell for this process while the block runs; gives False if another has it."""
        path = self.folder / f"{cell.key}.lock"
        with path.open("w") as file:
            try:
                fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                yield False
                return
            yield True
            # Whoever opened the old file still finds the result before it measures.
            path.unlink(missing_ok=True)


def run_digest(run_folder: Path) -> str:
    """What tells one trained or exported model from another: a digest of its files."""
    from ..training.saving import LAST

    digest = hashlib.blake2b(digest_size=8)
    single = [run_folder / name for name in (LAST, "config.yaml")]
    # An export is a handful of files; folders in it are results.
    paths = single if single[0].exists() else sorted(p for p in run_folder.iterdir() if p.is_file())
    for path in paths:
        with path.open("rb") as file:
            while block := file.read(1 << 22):
                digest.update(block)
    return digest.hexdigest()


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write a JSON file, all or nothing, also through a loss of power."""
    write_text(path, json.dumps(content, indent=1, allow_nan=False) + "\n")


def write_text(path: Path, text: str) -> None:
    """Write a text file, all or nothing."""
    partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
    with partial.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.replace(partial, path)


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object.

    Raises:
        DataError: if the file is something else.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"{path} cannot be read ({error}); delete it to measure again") from error
    if not isinstance(content, dict):
        raise DataError(f"{path} holds no JSON object; delete it to measure again")
    return content
