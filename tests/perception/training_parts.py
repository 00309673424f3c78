"""A toy model and made-up frames, so that trainings in tests take a second."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytorch_lightning as pl
import torch
from torch import nn

from bevstack.datasets.batch import Batch
from bevstack.datasets.boxes import Boxes3D, Detections
from bevstack.datasets.encode import Encoder
from bevstack.datasets.errors import DataError
from bevstack.datasets.frame import Annotations, Frame, LidarSweep
from bevstack.perception.training.data import NuScenesData
from bevstack.perception.training.run import TrainingOptions, TrainingResult, train

ENCODER = Encoder((-12.8, -9.6, -3.0, 12.8, 9.6, 5.0), num_sweeps=1)


class MadeUpReader:
    """Frames with a few points and a varying number of boxes; some may be unreadable."""

    def __init__(self, num_frames: int = 22, unreadable: tuple[int, ...] = ()) -> None:
        self.tokens = tuple(f"token{i}" for i in range(num_frames))
        self.unreadable = unreadable

    def __len__(self) -> int:
        return len(self.tokens)

    def __getitem__(self, i: int) -> Frame:
        def load() -> np.ndarray:
            if i in self.unreadable:
                raise DataError(f"samples/sweep{i}.pcd.bin is truncated; extract it again")
            low, high = [-12, -9, -2, 0, 0], [12, 9, 3, 255, 31]
            return np.random.default_rng(i).uniform(low, high, (50, 5)).astype(np.float32)

        eye = np.eye(4)
        sweep = LidarSweep(load, eye, eye, 0)
        return Frame(
            self.tokens[i], "scene", "nowhere", 0, eye, (), (sweep,), self.global_annotations(i)
        )

    def global_annotations(self, i: int) -> Annotations:
        random, count = np.random.default_rng(1000 + i), i % 5
        boxes = Boxes3D(
            center=random.uniform([-10, -8, 0], [10, 8, 1], (count, 3)),
            size=np.tile([4.0, 2.0, 1.5], (count, 1)),
            yaw=random.uniform(-3, 3, count),
            velocity=np.zeros((count, 2)),
            label=np.zeros(count, np.int64),
        )
        ones = np.ones(count, np.int64)
        return Annotations(
            boxes,
            attribute=6 * ones,
            instance=("",) * count,
            visibility=ones,
            num_lidar_points=9 * ones,
            num_radar_points=ones,
            category=("vehicle.car",) * count,
        )

    def class_counts(self, count_radar: bool = False) -> np.ndarray:
        return np.array([[i % 5] + 9 * [0] for i in range(len(self))])


class MadeUpData(NuScenesData):
    """``NuScenesData`` with made-up readers in the place of a folder."""

    def __init__(self, num_frames: int = 22, unreadable: tuple[int, ...] = (), **options) -> None:
        super().__init__("nowhere", "v0", ENCODER, **({"workers": 0, "batch_size": 4} | options))
        self._readers = {
            "train": MadeUpReader(num_frames, unreadable),
            "val": MadeUpReader(6),
        }

    def prepare_data(self) -> None:
        pass


class Shift:
    """A training step whose result depends on seed and epoch."""

    def __call__(self, frame: Frame, seed: int) -> Frame:
        from dataclasses import replace

        bev_from_ego = np.eye(4)
        bev_from_ego[0, 3] = seed % 1000 / 1000
        return replace(frame, bev_from_ego=bev_from_ego)


class ToyModel(nn.Module):
    """Guesses where a sample's mean point is; with dropout, without batch norm."""

    def __init__(self, dropout: float = 0.2, width: int = 8, sensors: bool = True) -> None:
        super().__init__()
        torch.manual_seed(7)
        self.camera = self.lidar = nn.Identity() if sensors else None
        self.first = nn.Linear(5, width)
        self.drop = nn.Dropout(dropout)
        self.last = nn.Linear(width, 3)

    def forward(self, batch: Batch, use_camera: bool = True, use_lidar: bool = True):
        total = torch.zeros(batch.size, 5).index_add(0, batch.point_sample, batch.points * 0.01)
        if not use_lidar:
            total = total * 0
        return {"toy": self.last(self.drop(self.first(total).relu()))}

    def loss(self, outputs, batch: Batch) -> dict[str, torch.Tensor]:
        total = torch.zeros(batch.size, 3)
        total = total.index_add(0, batch.point_sample, batch.points[:, :3] * 0.02)
        error = outputs["toy"] - total
        return {"toy/square": (error**2).sum(1).mean(), "toy/linear": error.abs().sum(1).mean()}

    def total_loss(self, terms: dict[str, torch.Tensor]) -> torch.Tensor:
        return terms["toy/square"] + 0.5 * terms["toy/linear"]

    def decode(self, outputs, batch: Batch) -> dict:
        return {"detection": [_truth_of(batch, i) for i in range(batch.size)]}


class TwoHeads(nn.Module):
    """Two tasks on one layer, as ``FusionModel`` offers them."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.camera = self.lidar = None
        self.trunk = nn.Linear(5, 8)
        self.heads = nn.ModuleDict({"near": nn.Linear(8, 3), "far": nn.Linear(8, 3)})

    def forward(self, batch, use_camera=True, use_lidar=True, split=None):
        total = torch.zeros(batch.size, 5).index_add(0, batch.point_sample, batch.points * 0.01)
        shared = self.trunk(total).relu()
        maps = dict.fromkeys(self.heads, shared) if split is None else split(shared)
        return {task: head(maps[task]) for task, head in self.heads.items()}

    def loss(self, outputs, batch):
        near, far = outputs["near"], outputs["far"]
        return {"near/square": ((near - 1) ** 2).mean(), "far/linear": 9 * (far + 1).abs().mean()}

    def task_losses(self, terms):
        return {name.split("/")[0]: value for name, value in terms.items()}

    def total_loss(self, terms):
        return torch.stack([*terms.values()]).sum()

    def decode(self, outputs, batch):
        return {}


def _truth_of(batch: Batch, i: int) -> Detections:
    """The annotated boxes as detections."""
    mine, boxes = batch.boxes.sample == i, batch.boxes
    found = Boxes3D(
        *(
            getattr(boxes, name)[mine].numpy().astype(np.float64)
            for name in ("center", "size", "yaw", "velocity")
        ),
        label=boxes.label[mine].numpy(),
    )
    return Detections(found, np.ones(len(found)), boxes.attribute[mine].numpy())


class StopAt(pl.Callback):
    """Ends the process's work abruptly after a step, like a crash."""

    class Stopped(Exception):
        pass

    def __init__(self, step: int) -> None:
        self.step = step

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx) -> None:
        if trainer.global_step >= self.step:
            raise self.Stopped


def quick(**changes) -> TrainingOptions:
    """Options for a training of 12 steps on the CPU."""
    options = {"max_steps": 12, "lr": 0.05, "lr_batch": 4, "accelerator": "cpu", "devices": 1}
    return TrainingOptions(**(options | {"save_every": 3, "validate_every": 0} | changes))


def run(folder: Path, data=None, model=None, resume=None, callbacks=None, **options):
    """Train; give the model as it came out, and the result."""
    model = model or ToyModel()
    result: TrainingResult = train(
        model, data or MadeUpData(), folder, quick(**options), resume, callbacks
    )
    return model, result


def read_losses(folder: Path) -> list[dict[str, str]]:
    with (folder / "losses.csv").open(newline="") as file:
        return list(csv.DictReader(file))
