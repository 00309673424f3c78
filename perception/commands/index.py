"""``bevstack index``: index a nuScenes folder."""

from __future__ import annotations

from pathlib import Path


def index(root: Path, version: str = "v1.0-trainval", previous_sweeps: int = 10) -> None:
    """Read nuScenes' JSON tables once into a memory-mapped Arrow index beside them.

    Args:
        root: the folder that holds samples, sweeps, maps and the tables' folder.
        version: the tables' folder: v1.0-trainval, v1.0-mini or v1.0-test.
        previous_sweeps: previous LiDAR sweeps to keep per key frame, at most.
    """
    from ...datasets.nuscenes.index import build_index

    build_index(root, version, previous_sweeps=previous_sweeps, progress=print)
