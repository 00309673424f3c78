"""The record that lies in a corrupted folder: what was done, and to which files."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from ...errors import DataError

NAME = "corruption.json"


@dataclass(frozen=True)
class Guard:
    """How a folder was made.

    Args:
        complete: whether writing came to its end.
        root: the clean folder.
        version: of its tables.
        split: that was corrupted; null for all frames.
        suite: name of the benchmark.
        name: of the corruption.
        severity: from 1.
        seed: of the run.
        as_published: with the benchmark's flaws.
        touches: what the corruption changes.
        fidelity: how near each of its parts is to the benchmark's own.
        frames: key frames that were corrupted.
        unchanged: sensor files of these frames that the corruption left as they were.
        unindexed: sweeps and images between key frames that stay clean: of other splits, and of
            cameras, whose images between key frames are not indexed.
        left_out: folders that no longer fit the data.
        files: every changed file with a digest of its content.
    """

    complete: bool
    root: str
    version: str
    split: str | None
    suite: str
    name: str
    severity: int
    seed: int
    as_published: bool
    touches: str
    fidelity: tuple[str, ...]
    frames: int = 0
    unchanged: int = 0
    unindexed: int = 0
    left_out: tuple[str, ...] = ()
    files: dict[str, str] | None = None

    def write(self, folder: Path) -> None:
        """Write it into the folder."""
        partial = folder / f"{NAME}.partial"
        partial.write_text(json.dumps(asdict(self), indent=1) + "\n")
        partial.replace(folder / NAME)

    @staticmethod
    def read(folder: Path) -> Guard:
        """The record in a folder.

        Raises:
            DataError: if there is none or it is broken.
        """
        path = folder / NAME
        try:
            values = json.loads(path.read_text())
            known: dict[str, Any] = {field.name: values[field.name] for field in fields(Guard)}
            known |= {name: tuple(values[name]) for name in ("fidelity", "left_out")}
            return Guard(**known)
        except FileNotFoundError as error:
            text = f"{path} is missing: {folder} was not made by `bevstack corrupt`"
            raise DataError(text) from error
        except (ValueError, KeyError, TypeError) as error:
            raise DataError(f"{path} is broken ({error}); write the folder again") from error

    def same_work(self, other: Guard) -> bool:
        """Whether the other one asks for the same corruption of the same data."""
        names = ("root", "version", "split", "suite", "name", "severity", "seed", "as_published")
        return all(getattr(self, name) == getattr(other, name) for name in names)


def digest(path: Path) -> str:
    """Of a file's content."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "blake2b").hexdigest()[:32]
