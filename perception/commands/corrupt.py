"""``bevstack corrupt``: write a corrupted nuScenes folder for other people's code."""

from __future__ import annotations

from pathlib import Path
from typing import Any


def corrupt(
    root: Path,
    out: Path,
    suite: str = "multicorrupt",
    name: str | None = None,
    severity: int = 1,
    version: str = "v1.0-trainval",
    split: str | None = None,
    seed: int = 0,
    as_published: bool = False,
    processes: int = 1,
    check: bool = False,
) -> None:
    """Corrupt the sensor files of a nuScenes folder; what is unchanged becomes a link.

    bevstack itself needs no such folder: it corrupts while loading (``bevstack robustness``).

    Args:
        root: the clean folder.
        out: folder to write, new or empty; an interrupted run goes on.
        suite: multicorrupt, robobev, robo3d or nuscenes_c.
        name: of the corruption; without it, those of the suite are listed.
        severity: from 1, the mildest.
        version: the tables' folder: v1.0-trainval, v1.0-mini or v1.0-test.
        split: whose frames are corrupted; default: all.
        seed: the same seed gives the same files.
        as_published: with the benchmark's flaws instead of the sound version.
        processes: that share the frames.
        check: prove that a folder written before differs from the clean one as recorded.
    """
    from ...datasets.corruptions import suite_of
    from ...datasets.corruptions.folder import check_folder, write_folder
    from .progress import progress_bar

    if check:
        guard = check_folder(root, out)
        print(
            f"{out} differs from {root} in {len(guard.files or {}):,} files, all as "
            f"recorded: {guard.suite} {guard.name}, severity {guard.severity}"
        )
        return
    if name is None:
        print(listing(suite_of(suite)))
        return
    with progress_bar("corrupt", "frames") as advance:
        guard = write_folder(
            root, out, suite, name, severity, version, split, seed, as_published, processes, advance
        )
    print(
        f"{out}: {guard.suite} {guard.name}, severity {guard.severity}, {guard.frames:,} frames; "
        f"{len(guard.files or {}):,} files written, {guard.unchanged:,} left as they were"
    )
    for folder in guard.left_out:
        print(f"{folder} is left out: its labels belong to the clean points")
    if guard.unindexed:
        why = "of other splits, and of cameras, whose images between key frames are not indexed"
        print(f"{guard.unindexed:,} files between key frames stay clean: those {why}")


def main(options: list[str]) -> None:
    """Parse the options; ``--check`` may stand alone."""
    from jsonargparse import auto_cli

    given = [f"{option}=true" if option == "--check" else option for option in options]
    auto_cli(corrupt, args=given, prog="bevstack corrupt")


def listing(suite: Any) -> str:
    """The corruptions of a suite with their remarks, a line for each sensor's part."""
    lines = [suite.title]
    for entry in suite.entries:
        for part in entry.parts:
            touches = ", ".join((t.name or "").lower() for t in part.touches)
            lines.append(f"  {entry.name:22}{entry.severities} severities   {touches}")
            lines.append(f"      {part.fidelity.value}: {part.remark}")
    return "\n".join(lines)
