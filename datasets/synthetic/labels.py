"""Annotations: the boxes of a key frame, and how well they can be seen."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ...kernels.numba_points_in_boxes import count_points_in_boxes
from .casting import Snapshot
from .rig import CAMERAS
from .world import World

ANNOTATED_RANGE = 65.0  # metres from the ego vehicle


@dataclass(frozen=True)
class BoxLabel:
    """One annotated box in the global frame."""

    agent: int
    center: NDArray[np.float64]  # (3,) global
    yaw: float
    num_lidar_points: int
    visibility: int  # 1..4: up to 40, 60, 80, 100 %


def label_agents(world: World, snapshot: Snapshot, time: float, cloud: NDArray) -> list[BoxLabel]:
    """The boxes of a moment.

    Args:
        world: the scene.
        snapshot: of that moment.
        time: seconds into the scene.
        cloud: (P, 3) global points of the key sweep.
    """
    ego = world.global_from_ego(time)
    near = []
    for index, agent in enumerate(world.agents):
        xy, yaw = agent.path.pose(time)
        if np.hypot(*(xy - ego[:2, 3])) < ANNOTATED_RANGE:
            near.append((index, np.array([*xy, agent.shape.size[2] / 2]), yaw))
    visibility = _visibility(world, snapshot, ego, near)
    boxes = [[*center, *world.agents[index].shape.size, yaw] for index, center, yaw in near]
    # One thread: scenes are written by processes of their own.
    counts = count_points_in_boxes(cloud, np.array(boxes).reshape(-1, 7), num_threads=1)
    return [
        BoxLabel(index, center, yaw, count, seen)
        for (index, center, yaw), count, seen in zip(near, counts.tolist(), visibility)
    ]


# Where lines of sight aim: a grid in the box, a little inside its surface.
_AIMS = np.stack(np.meshgrid(*[[-0.42, 0.0, 0.42]] * 3, indexing="ij"), -1).reshape(-1, 3)


def _visibility(
    world: World, snapshot: Snapshot, ego: NDArray, near: list[tuple[int, NDArray, float]]
) -> list[int]:
    """1..4 from the share of lines of sight, from the nearest camera, that end on the object."""
    if not near:
        return []
    targets, owners = [], []
    for index, center, yaw in near:
        offset = _AIMS * world.agents[index].shape.size
        c, s = np.cos(yaw), np.sin(yaw)
        turned = offset @ np.array([[c, -s, 0], [s, c, 0], [0, 0, 1]]).T
        targets.append(center + turned)
        owners.append(np.full(len(_AIMS), index))
    target, owner = np.concatenate(targets), np.concatenate(owners)
    cameras = np.stack([(ego @ mount.ego_from_camera)[:3, 3] for mount in CAMERAS])
    nearest = np.linalg.norm(target[:, None] - cameras, axis=-1).argmin(1)
    sight = target - cameras[nearest]
    length = np.linalg.norm(sight, axis=1, keepdims=True)
    hits = snapshot.cast(cameras[nearest], sight / length)
    # A line that passes through a gap of the object reaches its aim: that is seeing it too.
    seen = (hits.owner == owner) | (hits.distance > length[:, 0])
    share = seen.reshape(len(near), -1).mean(1)
    return [int(np.searchsorted([0.4, 0.6, 0.8], value, side="right")) + 1 for value in share]
