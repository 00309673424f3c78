"""The labels of one key frame from its scene's cloud."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ...kernels.numba_points_in_boxes import points_in_boxes
from ...kernels.numba_rays import mark_crossed, mark_visible
from ...kernels.numba_voxel_votes import add_votes, most_voted
from ...kernels.voxel_grid import VoxelGrid
from ..frame import Camera, Frame
from ..geometry import apply, inverse
from ..nuscenes.classes import FREE, MAP_CLASSES, OCCUPANCY_CLASSES
from ..occupancy import OccupancyLabels
from .accumulate import STILL, Cloud, SceneCloud, scene_from_box
from .background import GROUND
from .tracks import boxes_at

# Points of several classes in a voxel: an object's count before a building's before the ground's,
# for what is seen all the time has many more points than what passes by.
_FLAT = ("driveable_surface", "other_flat", "sidewalk", "terrain")
_STANDING = ("manmade", "vegetation")
_RANKS = [0 if c in _FLAT else 1 if c in _STANDING else 2 for c in OCCUPANCY_CLASSES]
RANK = np.array([*_RANKS, 0], np.int64)  # the last is GROUND
# The vehicle's body in its own frame: no other thing is there now, whatever was at other times.
_VEHICLE = np.array([[-1.0, -0.9, 0.4], [3.0, 0.9, 2.0]])
_NOTHING = 255  # no point in a voxel
_DRIVEABLE = OCCUPANCY_CLASSES.index("driveable_surface")

# What the map says about ground of unknown kind; later ones win.
_GROUND_OF_MAP = {
    "walkway": "sidewalk",
    "carpark_area": "driveable_surface",
    "drivable_area": "driveable_surface",
}


def label_frame(
    scene: SceneCloud, frame: Frame, grid: VoxelGrid, masks: NDArray[np.bool_] | None = None
) -> OccupancyLabels:
    """Make the labels of a frame.

    A voxel with a point has the class of its points. It is observed by the LiDAR if it has one or
    a ray of any sweep crosses it; where a moving object stands, only rays of the frame's own sweep
    count. It is observed by a camera if the ray of a pixel reaches it through free voxels, and
    the LiDAR observed it too.

    Args:
        scene: of the frame.
        frame: one of its key frames.
        grid: in the frame's ego frame.
        masks: (6, X, Y) MAP_CLASSES on the grid, for ground of unknown kind, which is ``terrain``
            outside all of them; without a map it is ``driveable_surface``.
    """
    voxels_from_ego = np.diag([*[1 / grid.voxel_size] * 3, 1.0])
    voxels_from_ego[:3, 3] = grid.to_voxels(np.zeros(3))
    ego_from_global = inverse(frame.global_from_ego)
    voxels_from_scene = voxels_from_ego @ ego_from_global @ scene.global_from_scene
    numbers, boxes = boxes_at(scene.tracks, frame.timestamp_us)
    semantics = _semantics(scene, numbers, boxes, voxels_from_scene, grid, masks)
    moving = boxes[[scene.tracks[n].moves for n in numbers]]
    lidar = _seen_by_lidar(scene, frame.timestamp_us, moving, voxels_from_scene, grid)
    lidar |= semantics != FREE
    camera = np.zeros(grid.shape, np.uint8)
    for shot in frame.cameras:
        ego_from_camera = ego_from_global @ shot.global_from_ego @ shot.ego_from_camera
        rays = pixel_rays(shot, grid) @ ego_from_camera[:3, :3].T
        origin = grid.to_voxels(ego_from_camera[:3, 3])
        mark_visible(camera, semantics, FREE, origin, rays)
    return OccupancyLabels(semantics, lidar, camera & lidar, grid, np.eye(4))


def _semantics(
    scene: SceneCloud,
    numbers: NDArray[np.int64],
    boxes: NDArray[np.float64],
    voxels_from_scene: NDArray[np.float64],
    grid: VoxelGrid,
    masks: NDArray[np.bool_] | None,
) -> NDArray[np.uint8]:
    votes = np.zeros((*grid.shape, len(RANK)), np.int32)
    for cloud in scene.clouds:
        still = cloud.track == STILL
        add_votes(votes, cloud.points[still], cloud.label[still], voxels_from_scene)
    for number, box in zip(numbers, boxes):
        points = scene.objects[number]
        label = np.full(len(points), scene.tracks[number].label, np.uint8)
        add_votes(votes, points, label, voxels_from_scene @ scene_from_box(box))
    voted = most_voted(votes, RANK, _NOTHING)
    x, y, _ = ground = np.nonzero(voted == GROUND)
    voted[ground] = _ground_kinds(grid, masks)[x, y]
    voted[voted == _NOTHING] = FREE
    low, high = np.clip(np.round(grid.to_voxels(_VEHICLE)), 0, grid.shape).astype(np.int64)
    voted[tuple(slice(a, b) for a, b in zip(low, high))] = FREE
    return voted


def _ground_kinds(grid: VoxelGrid, masks: NDArray[np.bool_] | None) -> NDArray[np.uint8]:
    """(X, Y) the class of ground that nothing else is known about."""
    if masks is None:
        return np.full(grid.shape[:2], _DRIVEABLE, np.uint8)
    kinds = np.full(grid.shape[:2], OCCUPANCY_CLASSES.index("terrain"), np.uint8)
    for layer, name in _GROUND_OF_MAP.items():
        kinds[masks[MAP_CLASSES.index(layer)]] = OCCUPANCY_CLASSES.index(name)
    return kinds


def _seen_by_lidar(
    scene: SceneCloud,
    time_us: int,
    moving: NDArray[np.float64],
    voxels_from_scene: NDArray[np.float64],
    grid: VoxelGrid,
) -> NDArray[np.uint8]:
    seen = np.zeros(grid.shape, np.uint8)
    for cloud in scene.clouds:
        if cloud.time_us != time_us:
            _cast(seen, cloud, voxels_from_scene, with_objects=False)
    if len(moving):
        # Free at another time says nothing about where a moving object stands now.
        middle = np.stack(np.meshgrid(*map(np.arange, grid.shape), indexing="ij"), -1) + 0.5
        places = apply(inverse(voxels_from_scene), middle.reshape(-1, 3))
        inside = points_in_boxes(places, moving, num_threads=1) >= 0
        seen[inside.reshape(grid.shape)] = 0
    for cloud in scene.clouds:
        if cloud.time_us == time_us:
            _cast(seen, cloud, voxels_from_scene, with_objects=True)
    return seen


def _cast(
    seen: NDArray[np.uint8],
    cloud: Cloud,
    voxels_from_scene: NDArray[np.float64],
    with_objects: bool,
) -> None:
    """Mark what a sweep's rays cross; where they end on objects of another time, the end not."""
    origin, ends = apply(voxels_from_scene, cloud.origin), apply(voxels_from_scene, cloud.points)
    still = cloud.track == STILL
    mark_crossed(seen, origin, ends[still])
    mark_crossed(seen, origin, ends[~still], with_end=with_objects)


def pixel_rays(camera: Camera, grid: VoxelGrid) -> NDArray[np.float64]:
    """(R, 3) in the camera's frame, through pixels in rows and columns of even distance.

    As few as it takes for neighbours to be no more than half a voxel apart at the far corners of a
    grid that the camera stands in the middle of.
    """
    model = camera.model
    u, v = model.width / 2, model.height / 2
    middle = model.unproject(np.array([[u, v, 1.0], [u + 1, v, 1.0]]))
    apart = np.linalg.norm(middle[1] - middle[0])  # per metre of depth
    reach = np.linalg.norm(np.array(grid.shape)) * grid.voxel_size / 2
    step = max(int(grid.voxel_size / 2 / (apart * reach)), 1)
    columns, rows = (np.arange(step // 2, n, step) for n in (model.width, model.height))
    pixels = np.stack([*np.meshgrid(columns, rows), np.ones((len(rows), len(columns)))], -1)
    return model.unproject(pixels.reshape(-1, 3).astype(np.float64))
