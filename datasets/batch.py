"""What the model sees: one encoded sample, and many of them joined."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields, is_dataclass, replace

import torch
from torch import Tensor

from .nuscenes.classes import FREE


@dataclass(frozen=True)
class BoxTargets:
    """M annotated boxes of a sample or batch in the BEV frame (see ``Boxes3D``)."""

    center: Tensor  # (M, 3) float32
    size: Tensor  # (M, 3) length, width, height
    yaw: Tensor  # (M,)
    velocity: Tensor  # (M, 2) NaN where unknown
    label: Tensor  # (M,) int64, never -1
    attribute: Tensor  # (M,) int64 index into ATTRIBUTES, -1 for none
    sample: Tensor  # (M,) int64 which sample of the batch
    instance: Tensor  # (M,) int64 number of the object, the same in all its frames


@dataclass(frozen=True)
class OccupancyTargets:
    """Occupancy labels of B samples on the occupancy grid, in the BEV frame."""

    semantics: Tensor  # (B, X, Y, Z) uint8 index into OCCUPANCY_CLASSES, FREE where nothing is
    mask_lidar: Tensor  # (B, X, Y, Z) bool: observed by the LiDAR
    mask_camera: Tensor  # (B, X, Y, Z) bool: observed by a camera too
    valid: Tensor  # (B,) bool: does this sample have labels? The masks of one without are empty


@dataclass(frozen=True)
class Batch:
    """B samples. Ragged data is concatenated; ``sample`` columns say whose it is.

    A single encoded sample is a batch of one: ``collate`` joins them.
    """

    tokens: tuple[str, ...]  # (B,) the batch size is len(tokens), never inferred from the data
    images: Tensor  # (N, 3, H, W) uint8 RGB, all cameras of all samples; N may be 0
    image_sample: Tensor  # (N,) int64
    bev_from_image: Tensor  # (N, 4, 4) float32: (u * d, v * d, d, 1), pixels of `images`, -> BEV
    points: Tensor  # (P, 5) float32: x, y, z in the BEV frame, intensity 0..255, time lag s
    point_sample: Tensor  # (P,) int64
    global_from_bev: Tensor  # (B, 4, 4) float64, undoes augmentation too
    boxes: BoxTargets
    box_valid: Tensor  # (B,) bool: is this sample annotated? (no box and not annotated differ)
    map_masks: Tensor | None  # (B, K, X, Y) bool on the map head's grid; None without map labels
    map_valid: Tensor  # (B,) bool: does this sample have map labels?
    occupancy: OccupancyTargets | None = None  # None without any occupancy label
    scene: Tensor | None = None  # (B,) int64 number of the drive, the same for all its frames
    timestamp_us: Tensor | None = None  # (B,) int64 of the key frame

    @property
    def size(self) -> int:
        """Number of samples."""
        return len(self.tokens)

    def to(self, device: torch.device | str, non_blocking: bool = False) -> Batch:
        """The batch with all tensors on ``device``."""

        return _map_tensors(self, lambda tensor: tensor.to(device, non_blocking=non_blocking))

    def clone(self) -> Batch:
        """The batch with tensors of its own."""

        return _map_tensors(self, Tensor.clone)

    def pin_memory(self) -> Batch:
        """The batch in page-locked memory (called by ``DataLoader(pin_memory=True)``)."""

        return _map_tensors(self, Tensor.pin_memory)


def _map_tensors(owner, function: Callable[[Tensor], Tensor]):
    changed = {}
    for f in fields(owner):
        value = getattr(owner, f.name)
        if is_dataclass(value):
            changed[f.name] = _map_tensors(value, function)
        elif isinstance(value, Tensor):
            changed[f.name] = function(value)
    return replace(owner, **changed)


def collate(samples: list[Batch]) -> Batch:
    """Join samples (or batches) into one batch, in order."""
    offsets = [0]
    for sample in samples:
        offsets.append(offsets[-1] + sample.size)

    def join(name: str) -> Tensor:
        return torch.cat([getattr(sample, name) for sample in samples])

    def join_index(parts: list[Tensor]) -> Tensor:
        return torch.cat([part + offset for part, offset in zip(parts, offsets)])

    boxes = {
        f.name: torch.cat([getattr(sample.boxes, f.name) for sample in samples])
        for f in fields(BoxTargets)
    }
    boxes["sample"] = join_index([sample.boxes.sample for sample in samples])
    return Batch(
        tokens=tuple(token for sample in samples for token in sample.tokens),
        images=join("images"),
        image_sample=join_index([sample.image_sample for sample in samples]),
        bev_from_image=join("bev_from_image"),
        points=join("points"),
        point_sample=join_index([sample.point_sample for sample in samples]),
        global_from_bev=join("global_from_bev"),
        boxes=BoxTargets(**boxes),
        box_valid=join("box_valid"),
        map_masks=_join_masks(samples),
        map_valid=join("map_valid"),
        occupancy=_join_occupancy(samples),
        scene=_join_known([sample.scene for sample in samples]),
        timestamp_us=_join_known([sample.timestamp_us for sample in samples]),
    )


def _join_known(parts: list[Tensor | None]) -> Tensor | None:
    known = [part for part in parts if part is not None]
    return torch.cat(known) if known and len(known) == len(parts) else None


def _join_masks(samples: list[Batch]) -> Tensor | None:
    shape = next((s.map_masks.shape[1:] for s in samples if s.map_masks is not None), None)
    if shape is None:
        return None
    # A sample without labels gets an empty mask; map_valid keeps it out of the loss.
    masks = [
        s.map_masks if s.map_masks is not None else torch.zeros(s.size, *shape, dtype=torch.bool)
        for s in samples
    ]
    return torch.cat(masks)


def _join_occupancy(samples: list[Batch]) -> OccupancyTargets | None:
    known = [s.occupancy for s in samples if s.occupancy is not None]
    if not known:
        return None
    parts = [
        s.occupancy if s.occupancy is not None else _unlabelled(s.size, known[0]) for s in samples
    ]
    joined = {f.name: torch.cat([getattr(p, f.name) for p in parts]) for f in fields(known[0])}
    return OccupancyTargets(**joined)


def _unlabelled(size: int, like: OccupancyTargets) -> OccupancyTargets:
    shape = (size, *like.semantics.shape[1:])
    nothing = torch.zeros(shape, dtype=torch.bool)
    free = torch.full(shape, FREE, dtype=torch.uint8)
    return OccupancyTargets(free, nothing, nothing, torch.zeros(size, dtype=torch.bool))
