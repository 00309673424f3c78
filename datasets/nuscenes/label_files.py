"""Published occupancy labels of nuScenes, by the layout of their folders.

* ``occ3d``: ``<scene name>/<sample token>/labels.npz`` with ``semantics``, ``mask_lidar`` and
  ``mask_camera``, (200, 200, 16) uint8 in the ego frame. The synthetic world's are the same.
* ``surroundocc``: ``samples/<LiDAR file>.npy``, (V, 4) x, y, z, class of the occupied voxels of a
  200 x 200 x 16 grid of 0.5 m in the LiDAR's frame.
* ``openoccupancy``: ``scene_<scene token>/occupancy/<LiDAR token>.npy``, (V, 4 or 7) z, y, x,
  (velocity,) class of the occupied voxels of a 512 x 512 x 40 grid of 0.2 m in the LiDAR's frame.

The last two have no masks: every voxel counts, but those of class 0, which is noise there.
Sources: Occ3D 6e8563a, SurroundOcc and OpenOccupancy data loaders.
"""

from __future__ import annotations

import json
import zipfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

from ...kernels.voxel_grid import OCC3D_GRID, OPENOCCUPANCY_GRID, SURROUNDOCC_GRID, VoxelGrid
from ..errors import DataError
from ..occupancy import OccupancyLabels
from .classes import FREE

LabelFormat = Literal["occ3d", "surroundocc", "openoccupancy"]


@dataclass(frozen=True)
class KeyFrame:
    """The names by which label folders know a key frame, and where its LiDAR sits."""

    scene: str  # name
    sample: str  # token
    lidar_file: str  # name of the key sweep's file, without folders; "" for none
    lidar_token: str  # token of its sample_data record
    lidar_from_ego: NDArray[np.float64]  # (4, 4)


@dataclass(frozen=True)
class LabelFolder:
    """A folder of occupancy labels.

    Args:
        path: the folder.
        format: its layout, see the module.
        tables: the folder of nuScenes' tables, for the tokens of scenes; needed by
            ``openoccupancy`` alone.

    Raises:
        DataError: if there is no such folder.
    """

    path: Path
    format: LabelFormat = "occ3d"
    tables: Path | None = None
    _scene_tokens: dict[str, str] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if self.format not in get_args(LabelFormat):
            raise ValueError(
                f"occupancy labels have no format {self.format!r}; give one of "
                f"{', '.join(get_args(LabelFormat))}"
            )
        if not Path(self.path).is_dir():
            raise DataError(
                f"{self.path} is not a folder of occupancy labels; download them, or train "
                "without an occupancy head"
            )
        object.__setattr__(self, "path", Path(self.path))
        object.__setattr__(self, "_scene_tokens", self._read_scene_tokens())

    def _read_scene_tokens(self) -> dict[str, str]:
        if self.format != "openoccupancy":
            return {}
        if self.tables is None:
            raise ValueError("openoccupancy names scenes by token; give the folder of the tables")
        scenes = json.loads((Path(self.tables) / "scene.json").read_text())
        return {scene["name"]: scene["token"] for scene in scenes}

    def find(self, frame: KeyFrame) -> LabelFile | None:
        """The labels of a key frame, not yet read; None where the folder has none of it."""
        path = self.path / self._relative(frame)
        if not path.is_file():
            return None
        if self.format == "occ3d":
            return LabelFile(path, self.format, OCC3D_GRID, np.eye(4))
        grid = SURROUNDOCC_GRID if self.format == "surroundocc" else OPENOCCUPANCY_GRID
        return LabelFile(path, self.format, grid, frame.lidar_from_ego)

    def _relative(self, frame: KeyFrame) -> str:
        if self.format == "occ3d":
            return f"{frame.scene}/{frame.sample}/labels.npz"
        if self.format == "surroundocc":
            return f"samples/{frame.lidar_file}.npy"
        scene = self._scene_tokens.get(frame.scene, "")
        return f"scene_{scene}/occupancy/{frame.lidar_token}.npy"


@dataclass(frozen=True)
class LabelFile:
    """One frame's labels, read when called."""

    path: Path
    format: LabelFormat
    grid: VoxelGrid
    grid_from_ego: NDArray[np.float64]

    def __call__(self) -> OccupancyLabels:
        """Read the file.

        Raises:
            DataError: if it is cut off, or not of the format.
        """
        try:
            semantics, lidar, camera = self._dense() if self.format == "occ3d" else self._sparse()
        except (OSError, ValueError, KeyError, IndexError, EOFError, zipfile.BadZipFile) as error:
            raise DataError(
                f"{self.path} is not a whole file of {self.format} labels ({error}); copy it "
                "again, or choose the format that the folder has"
            ) from error
        return OccupancyLabels(semantics, lidar, camera, self.grid, self.grid_from_ego)

    def _dense(self) -> tuple[NDArray[np.uint8], ...]:
        with np.load(self.path, allow_pickle=False) as content:
            volumes = tuple(content[name] for name in ("semantics", "mask_lidar", "mask_camera"))
        for volume in volumes:
            if volume.shape != self.grid.shape or volume.dtype != np.uint8:
                raise ValueError(f"{volume.shape} {volume.dtype}, not {self.grid.shape} uint8")
        if volumes[0].max() > FREE:
            raise ValueError(f"class {volumes[0].max()}, the last is {FREE}")
        return volumes

    def _sparse(self) -> tuple[NDArray[np.uint8], ...]:
        rows = np.load(self.path, allow_pickle=False)
        if rows.ndim != 2 or rows.shape[1] not in (4, 7):
            raise ValueError(f"an array of {rows.shape}, not (V, 4)")
        cells, label = rows[:, :3].astype(np.int64), rows[:, -1].astype(np.int64)
        if self.format == "openoccupancy":
            cells = cells[:, ::-1]
        if len(cells) and not ((cells >= 0) & (cells < self.grid.shape)).all():
            raise ValueError(f"voxels outside {self.grid.shape}")
        if len(label) and not ((label >= 0) & (label < FREE)).all():
            raise ValueError(f"classes {label.min()} to {label.max()}, not 0 to {FREE - 1}")
        semantics = np.full(self.grid.shape, FREE, np.uint8)
        semantics[tuple(cells.T)] = label
        observed = (semantics != 0).astype(np.uint8)  # class 0 is noise, which nobody learns
        return semantics, observed, observed
