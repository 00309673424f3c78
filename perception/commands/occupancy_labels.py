"""``bevstack occupancy-labels``: occupancy labels from accumulated LiDAR."""

from __future__ import annotations

from pathlib import Path


def occupancy_labels(
    root: Path,
    version: str = "v1.0-trainval",
    split: str | None = None,
    scenes: list[str] | None = None,
    out: Path | None = None,
    workers: int = 1,
    lidarseg: bool = True,
    index_dir: Path | None = None,
) -> None:
    """Make occupancy labels in Occ3D's layout, for training without published ones.

    All sweeps of a scene are gathered; annotated objects move with their boxes. Classes come from
    the boxes and from lidarseg. Without lidarseg, ground is named by the map (drivable area,
    walkway, elsewhere terrain; without a map all is driveable surface), and what stands on it
    without a box is manmade: vegetation, for one, cannot be told.

    Args:
        root: an indexed nuScenes folder.
        version: its tables' folder.
        split: make labels for this split; default: for all frames.
        scenes: only for these scenes.
        out: folder to write; default: ``gts`` in ROOT, where training looks for labels. An
            interrupted run goes on.
        workers: processes that share the scenes.
        lidarseg: use its classes where the dataset has them.
        index_dir: where the index is, if not in its usual place.
    """
    from ...datasets.errors import DataError
    from ...datasets.occupancy_labels.write import LabelJob, write_labels
    from .progress import progress_bar

    folder = Path(out) if out else Path(root) / "gts"
    job = LabelJob(Path(root), folder, version, split, lidarseg, index_dir)
    with progress_bar("occupancy-labels", "frames") as advance:
        outcome = write_labels(job, scenes, workers, advance)
    there = f", {outcome.present:,} were there before" if outcome.present else ""
    print(f"{folder}: {outcome.written:,} frames written{there}")
    if outcome.failed:
        scene, why = next(iter(outcome.failed.items()))
        raise DataError(
            f"{len(outcome.failed)} scenes could not be labelled, the first is {scene}: {why}; run "
            "the command again to go on"
        )


def main(options: list[str]) -> None:
    """Parse the options; the verb is no name that Python allows."""
    from jsonargparse import auto_cli

    auto_cli(occupancy_labels, args=options, prog="bevstack occupancy-labels")
