"""How well two folders of occupancy labels in Occ3D's layout agree.

    python tools/compare_labels.py MADE TRUTH

Compares every frame that both hold, on the voxels that are observed in both, by the LiDAR or by
the cameras: IoU of each class, their mean over the classes of TRUTH, and IoU of occupied voxels.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from bevstack.datasets.nuscenes.classes import FREE, OCCUPANCY_CLASSES


def main() -> None:
    parser = argparse.ArgumentParser(description="How well two folders of occupancy labels agree.")
    parser.add_argument("made", type=Path)
    parser.add_argument("truth", type=Path)
    options = parser.parse_args()
    files = [path.relative_to(options.made) for path in options.made.glob("*/*/labels.npz")]
    files = sorted(file for file in files if (options.truth / file).is_file())
    if not files:
        raise SystemExit(f"{options.made} and {options.truth} have no frame in common")
    for mask in ("mask_lidar", "mask_camera"):
        counts = sum(confusion(options.made / f, options.truth / f, mask) for f in files)
        print_agreement(np.asarray(counts), f"{len(files)} frames, {mask} of both")


def confusion(made: Path, truth: Path, mask: str) -> NDArray[np.int64]:
    """(18, 18) voxels by class in truth and in made."""
    with np.load(made) as a, np.load(truth) as b:
        both = (a[mask] > 0) & (b[mask] > 0)
        pair = b["semantics"][both].astype(np.int64) * (FREE + 1) + a["semantics"][both]
    return np.bincount(pair, minlength=(FREE + 1) ** 2).reshape(FREE + 1, FREE + 1)


def print_agreement(counts: NDArray[np.int64], title: str) -> None:
    right, true, found = np.diag(counts)[:FREE], counts.sum(1)[:FREE], counts.sum(0)[:FREE]
    iou = right / np.maximum(true + found - right, 1)
    occupied = counts[:FREE, :FREE].sum() / (counts.sum() - counts[FREE, FREE])
    print(f"{title}: mIoU {iou[true > 0].mean():.3f}, occupied IoU {occupied:.3f}")
    for name, value, voxels in zip(OCCUPANCY_CLASSES, iou, true):
        if voxels:
            print(f"  {name:22}{value:6.3f}  of {voxels:,} voxels")


if __name__ == "__main__":
    main()
