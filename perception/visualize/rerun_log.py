"""Frames in the Rerun viewer: sensors, boxes and tracks in the global frame, on a time line."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...datasets.boxes import Boxes3D, Detections
from ...datasets.camera_models import Pinhole
from ...datasets.frame import Frame
from ...datasets.geometry import inverse, quaternion_from_yaw
from ...datasets.nuscenes.classes import DETECTION_CLASSES, FREE
from ...kernels.grid import BEVGrid
from .bev import map_picture
from .occupancy import Voxels
from .outputs import Outputs
from .scene import as_detections, confident, key_points, truth_of
from .style import DARK, OCCUPANCY_COLOURS, ramp, title_of
from .trails import Trail

VIEWER = "viewer"
GROUND = -0.1  # metres, of maps: just below the points on the road


class RerunLog:
    """Logs frames to a recording file or to the viewer.

    Everything lies below ``world``, whose axes are those of the BEV frame of the first frame of its
    scene: viewers draw in float32, which the global frame's large numbers would make coarse.

    Args:
        target: an ``.rrd`` file to write, or ``viewer`` to open the viewer.

    Raises:
        ValueError: if the target is neither, or rerun-sdk is not installed.
    """

    def __init__(self, target: str) -> None:
        if target != VIEWER and Path(target).suffix != ".rrd":
            raise ValueError(f"--rerun is {target!r}; give a file that ends in .rrd, or {VIEWER}")
        try:
            import rerun
        except ImportError as error:
            raise ValueError("--rerun needs rerun-sdk: pip install 'bevstack[rerun]'") from error
        self.rr: Any = rerun
        self.stream: Any = rerun.RecordingStream("bevstack")
        if target == VIEWER:
            self.stream.spawn()
        else:
            Path(target).parent.mkdir(parents=True, exist_ok=True)
            self.stream.save(target)
        self.stream.log("world", rerun.ViewCoordinates.FLU, static=True)
        self._scene, self._world_from_global = "", np.eye(4)

    def log(
        self,
        frame: Frame,
        found: Outputs | None = None,
        truth: Outputs | None = None,
        trails: Sequence[Trail] = (),
        min_score: float = 0.1,
    ) -> None:
        """Log one frame.

        Args:
            frame: its annotations are logged as the true boxes.
            found: predictions.
            truth: the true map and voxels.
            trails: in the BEV frame.
            min_score: predictions with a lower score are left out.
        """
        global_from_bev = frame.global_from_ego @ inverse(frame.bev_from_ego)
        if frame.scene != self._scene:
            self._scene, self._world_from_global = frame.scene, inverse(global_from_bev)
        world_from_bev = self._world_from_global @ global_from_bev
        self.stream.set_time("time", timestamp=frame.timestamp_us / 1e6)
        self._transform("world/ego", world_from_bev)
        self._points(frame)
        self._cameras(frame)
        self._boxes("world/ego/truth", as_detections(truth_of(frame)), DARK.truth)
        boxes = found.boxes if found else None
        self._boxes("world/ego/prediction", confident(as_detections(boxes), min_score))
        for name, outputs in (("prediction", found), ("truth", truth)):
            if outputs is not None and outputs.map is not None and outputs.map_grid is not None:
                self._map(f"world/ego/map/{name}", outputs.map, outputs.map_grid)
            if outputs is not None and outputs.voxels is not None:
                self._transform("world/ego/occupancy", frame.bev_from_ego)
                self._voxels(f"world/ego/occupancy/{name}", outputs.voxels)
        strips = [trail.places for trail in trails]
        colours = [trail.colour for trail in trails]
        self.stream.log("world/ego/tracks", self.rr.LineStrips3D(strips, colors=colours, radii=0.1))

    def close(self) -> None:
        """Write what is still under way."""
        self.stream.flush(blocking=True)
        self.stream.disconnect()

    def _transform(self, path: str, matrix: NDArray) -> None:
        place = self.rr.Transform3D(translation=matrix[:3, 3], mat3x3=matrix[:3, :3])
        self.stream.log(path, place)

    def _points(self, frame: Frame) -> None:
        points = key_points(frame)
        if points is not None:
            colours = ramp((points[:, 2] + 0.5) / 3.5, DARK.points)
            cloud = self.rr.Points3D(points[:, :3], colors=colours, radii=0.04)
            self.stream.log("world/ego/lidar", cloud)

    def _map(self, path: str, layers: NDArray, grid: BEVGrid) -> None:
        """A picture that lies on the ground."""
        pixels_per_cell = max(1, round(grid.cell_size / 0.2))
        size_px = pixels_per_cell * max(grid.shape)
        picture = map_picture(layers, grid, size_px)
        (x0, x1), (y0, y1) = grid.x_range, grid.y_range
        corners = [[x1, y1, GROUND], [x1, y0, GROUND], [x0, y0, GROUND], [x0, y1, GROUND]]
        mesh = self.rr.Mesh3D(
            vertex_positions=corners, vertex_texcoords=[[0, 0], [1, 0], [1, 1], [0, 1]],
            triangle_indices=[[0, 1, 2], [0, 2, 3]], albedo_texture=picture,
        )  # fmt: skip
        self.stream.log(path, mesh)

    def _voxels(self, path: str, voxels: Voxels) -> None:
        """A small cube for every filled voxel, a little smaller, so that neighbours stand apart."""
        cells = np.argwhere(voxels.semantics != FREE)
        label = voxels.semantics[tuple(cells.T)]
        cubes = self.rr.Boxes3D(
            centers=voxels.grid.to_metres(cells + 0.5),
            half_sizes=np.full((len(cells), 3), 0.48 * voxels.grid.voxel_size),
            colors=np.array(OCCUPANCY_COLOURS, np.uint8)[label],
            fill_mode="solid",
        )
        self.stream.log(path, cubes)

    def _cameras(self, frame: Frame) -> None:
        """Every camera with its own pose at its own time."""
        for camera in frame.cameras:
            if not isinstance(camera.model, Pinhole):
                continue  # the viewer knows no other lens
            path = f"world/cameras/{camera.name}"
            global_from_camera = camera.global_from_ego @ camera.ego_from_camera
            self._transform(path, self._world_from_global @ global_from_camera)
            model = camera.model
            lens = self.rr.Pinhole(
                image_from_camera=model.intrinsic, width=model.width, height=model.height
            )
            self.stream.log(path, lens)
            self.stream.log(path, self.rr.Image(camera.load()).compress(jpeg_quality=80))

    def _boxes(self, path: str, found: Detections, colour: tuple | None = None) -> None:
        boxes: Boxes3D = found.boxes
        names = [DETECTION_CLASSES[label] if label >= 0 else "other" for label in boxes.label]
        labels = [
            title_of(name) if colour else f"{title_of(name)} {score:.2f}"
            for name, score in zip(names, found.score, strict=True)
        ]
        turn = quaternion_from_yaw(boxes.yaw)[:, [1, 2, 3, 0]]  # x, y, z, w there
        colours = [colour or DARK.of_class(int(label)) for label in boxes.label]
        drawn = self.rr.Boxes3D(
            centers=boxes.center, half_sizes=boxes.size / 2, quaternions=turn, colors=colours,
            labels=labels, show_labels=False,
        )  # fmt: skip
        self.stream.log(path, drawn)
