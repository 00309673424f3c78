"""``bevstack dump-frame``: one frame as raw arrays, for a runtime in another language."""

from __future__ import annotations

from pathlib import Path


def main(options: list[str]) -> None:
    """Parse the options, write the frame."""
    from jsonargparse import auto_cli

    auto_cli(dump_frame, args=options, prog="bevstack dump-frame")


def dump_frame(
    root: Path,
    runtime: Path,
    out: Path,
    token: str | None = None,
    index: int = 0,
    version: str = "v1.0-trainval",
    split: str | None = None,
    index_dir: Path | None = None,
) -> None:
    """Write what the graphs of an exported model are given for one frame, and what they give.

    OUT gets one raw file per array and ``frame.txt``, which says of which graph, name, type and
    shape they are; ``tools/cpp_runtime`` reads it. For a model with memory or a learned
    affinity the frames before run first.

    Args:
        root: an indexed nuScenes folder.
        runtime: what ``bevstack export`` wrote.
        out: folder for the arrays.
        token: sample token of the frame.
        index: number of the frame in the split, if no token is given.
        version: the tables' folder.
        split: the split that ``index`` counts in; default: all frames.
        index_dir: where the index is, if not in its usual place.
    """
    from ...datasets.errors import DataError
    from ...datasets.nuscenes.reader import NuScenesReader
    from ..runtime import read_manifest
    from ..runtime.dump import record, write_dump

    manifest = read_manifest(runtime)
    sensors = manifest.sensors
    reader = NuScenesReader(root, version, split, sensors.num_sweeps - 1, sensors.frame, index_dir)
    if token is not None and token not in reader.tokens:
        raise DataError(f"{root} {version} has no frame {token}; give a sample token of the split")
    if token is None and not 0 <= index < len(reader):
        raise DataError(f"--index is {index}; the split has the frames 0 to {len(reader) - 1}")
    frames = [reader[index if token is None else reader.index_of(token)]]
    moments = manifest.memory.moments if manifest.memory else 0
    for _ in range(max(moments, manifest.affinity is not None)):
        before = frames[0].previous() if frames[0].previous else None
        if before is None:
            break
        frames.insert(0, before)
    runs = record(runtime, frames)
    write_dump(out, frames[-1].token, runs)
    size = sum(path.stat().st_size for path in Path(out).iterdir())
    for run in runs:
        print(f"{run.graph.file}: {len(run.inputs)} inputs, {len(run.outputs)} outputs")
    print(f"frame {frames[-1].token} in {out}, {size / 1e6:.1f} MB")
