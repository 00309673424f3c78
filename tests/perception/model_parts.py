"""A small model on a rectangular grid, and batches of made-up sensor data for it."""

from __future__ import annotations

import hashlib
from dataclasses import fields
from functools import partial

import numpy as np
import torch

from bevstack.datasets.batch import Batch, BoxTargets
from bevstack.kernels.grid import BEVGrid
from bevstack.perception.encoders import FPN, CameraEncoder, LiftSplat, PillarEncoder, ResNet
from bevstack.perception.fusion import ConvFuser
from bevstack.perception.heads import CenterHead, MapHead
from bevstack.perception.model import FusionModel
from bevstack.perception.necks import SECOND

GRID = BEVGrid((-12.8, 12.8), (-9.6, 9.6), 0.8)  # 32 x 24 cells
MAP_GRID = BEVGrid((-10.0, 10.0), (-8.0, 8.0), 0.5)  # 40 x 32 cells
IMAGE_SIZE = (48, 96)  # rows, columns


def make_model(
    camera=True,
    lidar=True,
    heads=("detection", "map"),
    semantics=None,
    class_evidence=False,
    **lift,
) -> FusionModel:
    torch.manual_seed(0)
    parts = {
        "camera": partial(
            CameraEncoder,
            backbone=ResNet(8, (8, 16, 16), (1, 1, 1), "basic", (2, 3)),
            fpn=partial(FPN, out_channels=16),
            lift=partial(LiftSplat, out_channels=8, depth_range=(1.0, 21.0), **lift),
            depth_loss_weight=1.0,
            semantics=semantics,
        ),
        "lidar": partial(PillarEncoder, pillar_size=0.4, channels=8, out_channels=16),
    }
    head_parts = {
        "detection": partial(CenterHead, channels=16),
        "map": partial(MapHead, map_grid=MAP_GRID, channels=8),
    }
    return FusionModel(
        GRID,
        fuser=partial(ConvFuser, out_channels=16),
        backbone=partial(SECOND, channels=(16, 16), layers=(0, 1), up_channels=(16, 16)),
        heads={task: head_parts[task] for task in heads},
        camera=parts["camera"] if camera else None,
        lidar=parts["lidar"] if lidar else None,
        class_evidence=class_evidence,
    )


def bev_from_image(num_cameras: int, height: int = 48, width: int = 96) -> torch.Tensor:
    """(N, 4, 4) of cameras all around, 1.5 m up, with a horizontal field of view of 64 degrees."""
    matrices = []
    for yaw in 2 * np.pi * np.arange(num_cameras) / max(num_cameras, 1):
        c, s = np.cos(yaw), np.sin(yaw)
        axes = np.array([[0, 0, 1], [-1, 0, 0], [0, -1, 0]])
        bev_from_camera = np.eye(4)
        bev_from_camera[:3, :3] = np.array([[c, -s, 0], [s, c, 0], [0, 0, 1]]) @ axes
        bev_from_camera[:3, 3] = [0.5 * c, 0.5 * s, 1.5]
        intrinsic = np.eye(4)
        intrinsic[0, 0] = intrinsic[1, 1] = 0.8 * width
        intrinsic[0, 2], intrinsic[1, 2] = (width - 1) / 2, (height - 1) / 2
        matrices.append(bev_from_camera @ np.linalg.inv(intrinsic))
    return torch.tensor(np.array(matrices).reshape(-1, 4, 4), dtype=torch.float32)


def make_boxes(center, label, size=(4.0, 2.0, 1.5), sample=None, **given) -> BoxTargets:
    count = len(center)
    default = {
        "size": torch.as_tensor(size, dtype=torch.float32).expand(count, 3).clone(),
        "yaw": torch.zeros(count),
        "velocity": torch.zeros(count, 2),
        "attribute": torch.full((count,), -1),
        "sample": torch.zeros(count, dtype=torch.long) if sample is None else torch.tensor(sample),
        "instance": torch.arange(count),
    }
    center = torch.tensor(center, dtype=torch.float32).view(-1, 3)
    label = torch.tensor(label, dtype=torch.long)
    return BoxTargets(center=center, label=label, **(default | given))


def make_batch(size=2, cameras=2, points=400, boxes: BoxTargets | None = None, seed=0) -> Batch:
    g = torch.Generator().manual_seed(seed)
    low, high = torch.tensor([-14.0, -11.0, -1, 0, 0]), torch.tensor([14.0, 11.0, 3, 255, 0.5])
    if boxes is None:
        boxes = make_boxes(
            [[3, 2, 1], [-5, 4, 1], [6, -3, 1]][: 2 * size - 1],
            [0, 8, 3][: 2 * size - 1],
            sample=[0, 0, 1][: 2 * size - 1],
        )
    images = torch.randint(0, 256, (size * cameras, 3, *IMAGE_SIZE), generator=g)
    return Batch(
        tokens=tuple(f"sample{i}" for i in range(size)),
        images=images.to(torch.uint8),
        image_sample=torch.arange(size).repeat_interleave(cameras),
        bev_from_image=bev_from_image(cameras).repeat(size, 1, 1),
        points=torch.rand(size * points, 5, generator=g) * (high - low) + low,
        point_sample=torch.arange(size).repeat_interleave(points),
        global_from_bev=torch.eye(4, dtype=torch.float64).repeat(size, 1, 1),
        boxes=boxes,
        box_valid=torch.ones(size, dtype=torch.bool),
        map_masks=torch.rand(size, 6, *MAP_GRID.shape, generator=g) > 0.5,
        map_valid=torch.ones(size, dtype=torch.bool),
    )


def fingerprint(owner) -> str:
    """Hash of every tensor of a dataclass, nested ones included."""
    digest = hashlib.sha256()
    for f in fields(owner):
        value = getattr(owner, f.name)
        if isinstance(value, torch.Tensor):
            digest.update(value.numpy().tobytes())
        elif isinstance(value, BoxTargets):
            digest.update(fingerprint(value).encode())
    return digest.hexdigest()
