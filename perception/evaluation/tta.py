"""Test-time augmentation: a model sees every sample from several sides, and the results are merged.

A view turns, scales or mirrors the BEV frame under points and cameras alike. Boxes are brought back
and fused by weighted mean (Solovyev et al., Image and Vision Computing 2021, by distance of centres
in place of overlap); map probabilities are resampled and averaged. Other tasks, which have no rule
for merging here, are those of the first view, which is the sample as it is.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import product
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from ...datasets.batch import Batch
from ...datasets.boxes import Boxes3D, Detections
from ...kernels.grid import BEVGrid


@dataclass(frozen=True)
class Views:
    """From how many sides to look: every flip with every turn and every scale.

    Args:
        flip_x: also with the x axis negated.
        flip_y: also with the y axis negated.
        rotations: turns in radians, besides none.
        scales: factors, besides 1.
        merge_distance: boxes of one class are one object if their centres are not further apart
            than this times the mean of their shorter sides.
    """

    flip_x: bool = False
    flip_y: bool = False
    rotations: Sequence[float] = ()
    scales: Sequence[float] = ()
    merge_distance: float = 1.0

    def __post_init__(self) -> None:
        if any(scale <= 0 for scale in self.scales):
            raise ValueError(f"tta.scales is {list(self.scales)}; factors must be above 0")

    def matrices(self) -> list[NDArray[np.float64]]:
        """(4, 4) view_from_bev of every view; the first is the identity."""
        signs = product((1, -1) if self.flip_x else (1,), (1, -1) if self.flip_y else (1,))
        found = []
        for (x, y), angle, scale in product(signs, (0.0, *self.rotations), (1.0, *self.scales)):
            cos, sin = np.cos(angle), np.sin(angle)
            turn = np.array([[cos, -sin, 0, 0], [sin, cos, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]])
            found.append(np.diag([scale * x, scale * y, scale, 1.0]) @ turn)
        return found


class AugmentedModel:
    """A ``FusionModel`` that is asked once per view; see ``evaluate.Model``.

    Args:
        model: the model.
        views: from where it looks.
    """

    def __init__(self, model: Any, views: Views) -> None:
        self.model, self.views = model, views

    @property
    def training(self) -> bool:
        """Is the model in training mode?"""
        return self.model.training

    def train(self, mode: bool = True) -> AugmentedModel:
        """Set the model's mode."""
        self.model.train(mode)
        return self

    def parameters(self) -> Any:
        """The model's parameters."""
        return self.model.parameters()

    def __call__(self, batch: Batch, use_camera: bool = True, use_lidar: bool = True) -> dict:
        """Decoded results of every view, in its own frame, under "views"."""
        decoded = []
        for matrix in self.views.matrices():
            moved = moved_batch(batch, torch.from_numpy(matrix))
            outputs = self.model(moved, use_camera=use_camera, use_lidar=use_lidar)
            decoded.append(self.model.decode(outputs, moved))
        return {"views": decoded}

    def decode(self, outputs: dict, batch: Batch) -> dict[str, Any]:
        """The merged results of all views, by task."""
        decoded, matrices = outputs["views"], self.views.matrices()
        merged = dict(decoded[0])
        if "detection" in merged:
            by_sample = zip(*(view["detection"] for view in decoded), strict=True)
            merged.pop("affinity", None)  # it is about the boxes of one view, which these are not
            merged["detection"] = [
                merged_boxes(views, matrices, self.views.merge_distance) for views in by_sample
            ]
        if "map" in merged:
            grid = self.model.heads["map"].map_grid
            merged["map"] = merged_map([view["map"] for view in decoded], matrices, grid)
        return merged


def moved_batch(batch: Batch, view_from_bev: Tensor) -> Batch:
    """The batch with its sensors in another BEV frame; targets stay behind.

    Args:
        batch: stays as it is.
        view_from_bev: (4, 4) float64.
    """
    matrix = view_from_bev.to(batch.points.device)
    points = batch.points.clone()
    xyz = batch.points[:, :3].double() @ matrix[:3, :3].T + matrix[:3, 3]
    points[:, :3] = xyz.to(points.dtype)
    return replace(
        batch,
        points=points,
        bev_from_image=(matrix @ batch.bev_from_image.double()).to(batch.bev_from_image.dtype),
        global_from_bev=batch.global_from_bev @ torch.linalg.inv(matrix),
    )


def merged_boxes(
    views: Sequence[Detections], view_from_bev: Sequence[NDArray], merge_distance: float
) -> Detections:
    """Boxes of one sample from all views, fused, best first.

    From the best box down, each takes the best box of its class near it from every other view. The
    result is their mean weighted by score, with the sum of their scores divided by the number of
    views: what few views see counts less.

    Args:
        views: the boxes that each view gave, in its own frame.
        view_from_bev: (4, 4) of each view.
        merge_distance: see :class:`Views`.
    """
    back = [
        found.boxes.transformed(np.linalg.inv(matrix))
        for found, matrix in zip(views, view_from_bev, strict=True)
    ]
    boxes = _concatenated(back)
    score = np.concatenate([found.score for found in views])
    attribute = np.concatenate([found.attribute for found in views])
    view = np.repeat(np.arange(len(views)), [len(found) for found in views])
    reach = boxes.size[:, :2].min(1) * merge_distance
    order = np.argsort(-score, kind="stable")
    free = np.ones(len(boxes), bool)
    groups: list[NDArray[np.int64]] = []
    for best in order:
        if free[best]:
            rest = order[free[order] & (boxes.label[order] == boxes.label[best])]
            gap = np.hypot(*(boxes.center[rest, :2] - boxes.center[best, :2]).T)
            near = rest[(gap <= (reach[rest] + reach[best]) / 2) | (rest == best)]
            _, first = np.unique(view[near], return_index=True)  # the best of each view
            group = near[np.sort(first)]
            free[group] = False
            groups.append(group)
    fused = Detections(
        _concatenated([_mean_box(boxes[group], score[group]) for group in groups]),
        np.array([score[group].sum() / len(views) for group in groups]),
        np.array([attribute[group[0]] for group in groups], np.int64),
    )
    return fused[np.argsort(-fused.score, kind="stable")]


def _mean_box(boxes: Boxes3D, score: NDArray) -> Boxes3D:
    """The mean of boxes, best first, by score; headings against the first's are left out."""
    weight = np.maximum(score, 1e-12)
    weight = weight / weight.sum()
    turn = boxes.yaw - boxes.yaw[0]
    agree = weight * (np.cos(turn) > 0)
    yaw = boxes.yaw[0] + np.arctan2(agree @ np.sin(turn), agree @ np.cos(turn))
    return Boxes3D(
        center=(weight @ boxes.center)[None],
        size=(weight @ boxes.size)[None],
        yaw=np.atleast_1d((yaw + np.pi) % (2 * np.pi) - np.pi),
        velocity=(weight @ boxes.velocity)[None],
        label=boxes.label[:1],
    )


def _concatenated(parts: Sequence[Boxes3D]) -> Boxes3D:
    parts = [Boxes3D.empty(), *parts]
    names = ("center", "size", "yaw", "velocity", "label")
    return Boxes3D(*(np.concatenate([getattr(part, name) for part in parts]) for name in names))


def merged_map(views: Sequence[Tensor], view_from_bev: Sequence[NDArray], grid: BEVGrid) -> Tensor:
    """(B, K, X, Y) mean of the views' probabilities; of a cell, over the views that saw it.

    Args:
        views: (B, K, X, Y) each, on the grid in the view's own frame.
        view_from_bev: (4, 4) of each view; the first sees every cell.
        grid: of all maps.
    """
    total = torch.zeros_like(views[0])
    seen = torch.zeros(*grid.shape, device=total.device)
    for probability, matrix in zip(views, view_from_bev, strict=True):
        position, inside = _positions(grid, matrix)
        position, inside = position.to(total.device), inside.to(total.device)
        where = position.to(probability.dtype).expand(len(probability), -1, -1, -1)
        # At the border a cell's middle may lie outside of all middles: the nearest counts.
        sampled = F.grid_sample(probability, where, padding_mode="border", align_corners=False)
        total += sampled * inside
        seen += inside
    return total / seen.clamp(min=1)


def _positions(grid: BEVGrid, view_from_bev: NDArray) -> tuple[Tensor, Tensor]:
    """Where the middles of cells lie in a view, (1, X, Y, 2) for ``grid_sample``; and if inside."""
    i, j = np.meshgrid(*(np.arange(n) + 0.5 for n in grid.shape), indexing="ij")
    x, y = grid.to_metres(i, j)
    m = view_from_bev
    moved = (m[row, 0] * x + m[row, 1] * y + m[row, 3] for row in range(2))
    i, j = grid.to_cells(*moved)
    u, v = 2 * i / grid.shape[0] - 1, 2 * j / grid.shape[1] - 1
    inside = (np.abs(u) <= 1) & (np.abs(v) <= 1)
    position = torch.from_numpy(np.stack([v, u], -1))[None]
    return position, torch.from_numpy(inside.astype(np.float32))
