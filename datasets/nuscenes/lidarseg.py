"""nuScenes-lidarseg: a class for every point of the key sweeps."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import DataError
from .classes import occupancy_class
from .tables import version_folder

NOT_A_THING = 255  # noise and the vehicle itself: no part of the scene
_LEFT_OUT = ("noise", "vehicle.ego")


@dataclass(frozen=True)
class PointClasses:
    """The lidarseg files of a version, by the token of the LiDAR file that they belong to."""

    root: Path
    files: dict[str, str]  # sample_data token -> file, relative to root
    class_of_index: NDArray[np.uint8]  # (256,) value in a file -> class or NOT_A_THING

    @staticmethod
    def open(root: Path | str, version: str) -> PointClasses | None:
        """The files of a version; None where the dataset has no ``lidarseg.json``.

        Raises:
            DataError: if that table or ``category.json`` is broken.
        """
        folder = version_folder(root, version)
        path = folder / "lidarseg.json"
        if not path.is_file():
            return None
        try:
            files = {row["sample_data_token"]: row["filename"] for row in _rows(path)}
            table = np.full(256, NOT_A_THING, np.uint8)
            for row in _rows(folder / "category.json"):
                if row["name"] not in _LEFT_OUT:
                    table[row["index"]] = occupancy_class(row["name"])
        except (KeyError, TypeError, IndexError, ValueError) as error:
            raise DataError(
                f"{path} and {folder / 'category.json'} are no tables of nuScenes-lidarseg "
                f"({error}); unpack its archive into {root} again, or make labels without lidarseg"
            ) from error
        return PointClasses(Path(root), files, table)

    def of(self, token: str, num_points: int) -> NDArray[np.uint8] | None:
        """(P,) index into ``OCCUPANCY_CLASSES`` of each point of a sweep, or NOT_A_THING.

        Args:
            token: of the sweep's sample_data record.
            num_points: of the sweep.

        Returns:
            None for a sweep without labels.

        Raises:
            DataError: if the file is missing or belongs to another sweep.
        """
        if token not in self.files:
            return None
        path = self.root / self.files[token]
        if not path.is_file():
            raise DataError(f"{path} is missing; unpack nuScenes-lidarseg's archive again")
        index = np.fromfile(path, np.uint8)
        if len(index) != num_points:
            raise DataError(
                f"{path} has {len(index)} labels, its sweep {num_points} points; unpack "
                "nuScenes-lidarseg's archive again"
            )
        return self.class_of_index[index]


def _rows(path: Path) -> list[dict[str, Any]]:
    return json.loads(path.read_text(encoding="utf-8"))
