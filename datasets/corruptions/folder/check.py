"""Prove that a corrupted folder is one."""

from __future__ import annotations

from pathlib import Path

from ...errors import DataError
from .guard import NAME, Guard, digest


def check_folder(root: Path | str, folder: Path | str) -> Guard:
    """Compare a corrupted folder with the clean one, file by file.

    Every file that the record names must be there, be no link, hold what was written, and differ
    from the clean file of that name.

    Args:
        root: the clean folder.
        folder: the corrupted one.

    Returns:
        The record.

    Raises:
        DataError: naming the first file that fails, or if nothing differs at all.
    """
    folder = Path(folder)
    guard = Guard.read(folder)
    if not guard.complete:
        raise DataError(f"{folder} is unfinished; run the same `bevstack corrupt` again to go on")
    if not guard.files:
        raise DataError(
            f"{folder} is clean: {guard.name} at severity {guard.severity} changed no file of "
            f"{guard.frames} frames"
        )
    for name, expected in guard.files.items():
        path = folder / name
        if path.is_symlink() or not path.is_file():
            raise DataError(f"{path} should hold corrupted data but is a link or missing")
        if digest(path) != expected:
            raise DataError(f"{path} is not what {NAME} recorded; write the folder again")
        clean = Path(root) / name
        if clean.is_file() and digest(clean) == expected:
            raise DataError(f"{path} equals the clean {clean}; write the folder again")
    return guard
