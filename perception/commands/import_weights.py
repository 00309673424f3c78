"""``bevstack import``: published checkpoints to run folders."""

from __future__ import annotations

from pathlib import Path

from jsonargparse import ArgumentParser


def main(options: list[str]) -> None:
    """Parse the options, write the run folder."""
    from ..importing import Source, Task, import_checkpoint

    parser = ArgumentParser(
        prog="bevstack import",
        description="Turn a published checkpoint into a run folder, for evaluate and the other "
        "commands. Every tensor is accounted for; nothing in the file is run.",
    )
    parser.add_argument("checkpoint", type=Path, help=".pth or .safetensors")
    parser.add_argument("out", type=Path, help="a new run folder")
    parser.add_argument(
        "--from", dest="source", type=Source, required=True, help="who published it"
    )
    parser.add_argument(
        "--task",
        type=Task,
        default="det",
        help="detection, map segmentation, or detection by LiDAR or by cameras alone",
    )
    given = parser.parse_args(options)
    count = import_checkpoint(given.checkpoint, given.out, given.source, given.task)
    print(f"{count:,} numbers taken over; evaluate with: bevstack evaluate {given.out} --root DIR")
