"""Boxes and detections for tests of affinities."""

from dataclasses import replace

import numpy as np
import torch
from model_parts import GRID

from bevstack.datasets.boxes import Boxes3D, Detections
from bevstack.perception.decoding.affinity import LinkedFrame
from bevstack.perception.heads import AffinityHead

CAR, BARRIER, PEDESTRIAN = 0, 5, 8


def boxes(center, label=PEDESTRIAN, yaw=0.0, velocity=(0.0, 0.0)) -> Boxes3D:
    """At (x, y), 0.8 m long and 0.6 m wide."""
    place = np.asarray(center, float).reshape(-1, 2)
    count = len(place)
    return Boxes3D(
        np.column_stack([place, np.ones(count)]),
        np.tile([0.8, 0.6, 1.7], (count, 1)),
        np.full(count, yaw),
        np.broadcast_to(np.asarray(velocity, float), (count, 2)).copy(),
        np.full(count, label),
    )


def found(center, score=0.8, **given) -> Detections:
    here = boxes(center, **given)
    return Detections(here, np.full(len(here), score), np.full(len(here), -1))


def pose(x=0.0, y=0.0, yaw=0.0, flip=1.0, scale=1.0):
    c, s = np.cos(yaw), np.sin(yaw)
    matrix = np.eye(4)
    matrix[:2, :2] = scale * np.array([[c, -s], [s, c]]) @ np.diag([1, flip])
    matrix[2, 2] = scale
    matrix[:2, 3] = x, y
    return matrix


def head(seed=0, **given) -> AffinityHead:
    """One whose last layers say something."""
    torch.manual_seed(seed)
    made = AffinityHead(6, GRID, channels=4, width=16, descriptor=8, **given)
    for network in (made.pair, made.row, made.column):
        torch.nn.init.normal_(network[-1].weight)
    return made.eval()


def frame(seen: Detections, time=0.0, place=None, seed=0, scene=1) -> LinkedFrame:
    bev = torch.randn(4, *GRID.shape, generator=torch.Generator().manual_seed(seed))
    return LinkedFrame(bev, seen, pose() if place is None else place, scene, round(time * 1e6))


def crowd(seed, count) -> Detections:
    rng = np.random.default_rng(seed)
    here = boxes(rng.uniform(-8, 8, (count, 2)), velocity=(1.0, -0.5))
    label = rng.choice([CAR, PEDESTRIAN], count)
    here = replace(here, yaw=rng.uniform(-3, 3, count), label=label)
    return Detections(here, np.sort(rng.random(count))[::-1].copy(), np.full(count, -1))
