"""The whole model: encoders, fuser, BEV backbone and heads, put together."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from ..datasets.batch import Batch
from ..datasets.boxes import Detections
from ..datasets.nuscenes.classes import DETECTION_CLASSES
from ..kernels.grid import BEVGrid
from .encoders import CameraEncoder, PillarEncoder, VoxelEncoder
from .fusion import ClassEvidence, ConvFuser, SingleSensor
from .heads import AffinityHead, CenterHead, MapHead, OccupancyHead, TransFusionHead
from .memory import BEVMemory, Moments, Past, recall
from .necks import SECOND, BEVResNet

Head = CenterHead | TransFusionHead | MapHead | OccupancyHead | AffinityHead


class FusionModel(nn.Module):
    """Sensors to one BEV map to several tasks.

    The parts are given as callables, which the model calls with what follows from the other
    parts (channels and grid): in a config a ``class_path`` with ``init_args``, in Python a class
    or a ``functools.partial`` of it.

    Args:
        grid: the BEV grid that encoders fill and heads read.
        camera: camera branch, made from the grid; null for a model without cameras.
        lidar: LiDAR branch, made from the grid; null for a model without LiDAR.
        fuser: made from the channels of both branches, 0 for one that is absent.
        backbone: BEV backbone, made from the fuser's channels and the grid.
        heads: by task ("detection", "map", "occupancy", "affinity"), made from the backbone's
            channels and the grid; affinity needs detection, whose boxes it links.
        task_weights: weight of a task in the total loss; 1 for those not named.
        class_evidence: add what the camera branch paints of classes to the heat-map of detection;
            needs ``camera.semantics`` that paint, without effect on a model without cameras.
        memory: what earlier frames of a scene add to the fused map, made from the fuser's channels
            and the grid; null for a model that sees every frame on its own. Train it on clips
            (``data.clip_length``).
    """

    def __init__(
        self,
        grid: BEVGrid,
        fuser: Callable[[int, int], ConvFuser | SingleSensor],
        backbone: Callable[[int, BEVGrid], SECOND | BEVResNet],
        heads: dict[str, Callable[[int, BEVGrid], Head]],
        camera: Callable[[BEVGrid], CameraEncoder] | None = None,
        lidar: Callable[[BEVGrid], PillarEncoder | VoxelEncoder] | None = None,
        task_weights: dict[str, float] | None = None,
        class_evidence: bool = False,
        memory: Callable[[int, BEVGrid], BEVMemory] | None = None,
    ):
        super().__init__()
        if camera is None and lidar is None:
            raise ValueError("the model has no sensor; configure model.camera or model.lidar")
        if not heads:
            raise ValueError("the model has no head; configure one in model.heads")
        self.grid = grid
        self.camera = camera(grid) if camera is not None else None
        self.lidar = lidar(grid) if lidar is not None else None
        self.fuser = fuser(_channels(self.camera), _channels(self.lidar))
        self.memory = memory(self.fuser.out_channels, grid) if memory is not None else None
        self.backbone = backbone(self.fuser.out_channels, grid)
        self.heads = nn.ModuleDict(
            {task: head(self.backbone.out_channels, grid) for task, head in heads.items()}
        )
        for task, head in self.heads.items():
            if head.task != task:
                raise ValueError(
                    f"model.heads.{task} is a {type(head).__name__}; name it {head.task!r}"
                )
        if AffinityHead.task in self.heads and "detection" not in self.heads:
            raise ValueError("model.heads.affinity links detections; add a detection head")
        self.class_evidence = self._class_evidence() if class_evidence and self.camera else None
        self.task_weights = dict(task_weights or {})
        if unknown := set(self.task_weights) - set(self.heads) - {"camera"}:
            raise ValueError(
                f"task_weights names {sorted(unknown)}; the tasks are {[*self.heads, 'camera']}"
            )
        # Convolutions on CPU and tensor cores are fastest with channels last.
        for parameter in self.parameters():
            if parameter.ndim == 4:  # the weights of sparse convolutions have five axes
                parameter.data = parameter.data.contiguous(memory_format=torch.channels_last)

    def forward(
        self,
        batch: Batch,
        use_camera: bool | Tensor = True,
        use_lidar: bool | Tensor = True,
        split: Callable[[Tensor], dict[str, Tensor]] | None = None,
    ) -> dict[str, Any]:
        """Predict; the batch is left as it is.

        A sensor that is not used looks to the model exactly like one that delivered nothing.

        Args:
            batch: B samples.
            use_camera: False withholds the images, or (B,) bool says of which samples.
            use_lidar: the same for the points.
            split: gives every task its view of the shared map; training watches and weighs there
                what the tasks' gradients do to it. None gives all the map itself.

        Returns:
            The output dataclass of every head by task, and under "camera" what the camera branch
            predicts beside its map, where it has an image.
        """
        return self.step(batch, None, use_camera, use_lidar, split)[0]

    def step(
        self,
        batch: Batch,
        state: Moments | None,
        use_camera: bool | Tensor = True,
        use_lidar: bool | Tensor = True,
        split: Callable[[Tensor], dict[str, Tensor]] | None = None,
    ) -> tuple[dict[str, Any], Moments | None]:
        """As :meth:`forward`, remembering: give each call the state that the one before gave.

        A sample looks back at earlier moments of its scene, in the batch and in the state; the
        order of samples within a batch is of no account.

        Args:
            batch: B samples.
            state: the last moments; None to start with.
            use_camera: see :meth:`forward`.
            use_lidar: see :meth:`forward`.
            split: see :meth:`forward`.

        Returns:
            The outputs, and the new state, None for a model without memory.
        """
        seen = withhold(batch, use_camera, use_lidar)
        camera, perspective = self.camera(seen) if self.camera is not None else (None, None)
        lidar = self.lidar(seen) if self.lidar is not None else None
        fused, past = self.fuser(camera, lidar), None
        if self.memory is not None:
            now = Moments.of_batch(fused, batch)
            known = now if state is None else state.joined(now)
            past = recall(now, known, self.memory.moments, self.memory.max_age)
            state = known.latest(self.memory.moments)
        outputs = self.from_fused(fused, camera, split, past)
        if perspective is not None:
            outputs["camera"] = perspective
        return outputs, state

    def fuse(
        self,
        camera: Tensor | None,
        lidar: Tensor | None,
        split: Callable[[Tensor], dict[str, Tensor]] | None = None,
        past: Past | None = None,
    ) -> dict[str, Any]:
        """From the sensors' maps (B, C, X, Y), None without that branch, to the heads' outputs.

        Args:
            camera: map of the camera branch.
            lidar: map of the LiDAR branch.
            split: see :meth:`forward`.
            past: what the memory looks back at; None for nothing.
        """
        return self.from_fused(self.fuser(camera, lidar), camera, split, past)

    def from_fused(
        self,
        fused: Tensor,
        camera: Tensor | None,
        split: Callable[[Tensor], dict[str, Tensor]] | None = None,
        past: Past | None = None,
    ) -> dict[str, Any]:
        """As :meth:`fuse`, from the fused map (B, C, X, Y), which is what the memory keeps."""
        hints: dict[str, Tensor] = {}  # for detection, beside the map
        if self.memory is not None:
            past = past or Past.nothing(fused, self.memory.moments)
            fused, hints["motion"] = self.memory(fused, past)
        bev = self.backbone(fused)
        maps = dict.fromkeys(self.heads, bev) if split is None else split(bev)
        if self.class_evidence is not None and self.camera is not None and camera is not None:
            hints["evidence"] = self.class_evidence(self.camera.painted_classes(camera))
        return {
            task: head(maps[task], **hints) if task == "detection" else head(maps[task])
            for task, head in self.heads.items()
        }

    def _class_evidence(self) -> ClassEvidence:
        head = dict(self.heads.items()).get("detection")
        known = isinstance(head, CenterHead | TransFusionHead)
        if not (self.camera is not None and self.camera.paints and known):
            raise ValueError(
                "class_evidence needs a detection head and camera.semantics with paint: true; "
                "configure them or set class_evidence: false"
            )
        if head.classes != DETECTION_CLASSES:
            raise ValueError("class_evidence needs the ten detection classes in their usual order")
        return ClassEvidence(len(head.classes))

    def loss(self, outputs: dict[str, Any], batch: Batch) -> dict[str, Tensor]:
        """Loss terms by "task/term", not yet weighted by task."""
        terms = {}
        if self.camera is not None:  # with a term for no image too: processes go in step
            outputs = {**outputs, "camera": outputs.get("camera")}
        for task, output in outputs.items():
            owner: Any = self.camera if task == "camera" else self.heads[task]
            given = (self._found(outputs, batch),) if task == AffinityHead.task else ()
            for name, value in owner.loss(output, batch, *given).items():
                terms[f"{task}/{name}"] = value
        return terms

    def total_loss(self, terms: dict[str, Tensor]) -> Tensor:
        """The weighted sum of what :meth:`loss` gives."""
        return torch.stack([*self.task_losses(terms).values()]).sum()

    def task_losses(self, terms: dict[str, Tensor]) -> dict[str, Tensor]:
        """By task, the weighted sum of its terms in what :meth:`loss` gives."""
        losses: dict[str, Tensor] = {}
        for name, value in terms.items():
            task = name.split("/")[0]
            weighted = self.task_weights.get(task, 1.0) * value
            losses[task] = losses[task] + weighted if task in losses else weighted
        return losses

    def decode(self, outputs: dict[str, Any], batch: Batch | None = None) -> dict[str, Any]:
        """By task: a list of ``Detections``; (B, K, X, Y) probabilities; ``OccupancyVolume``; a
        list of ``LinkedFrame``, where a batch says its scenes and times."""
        heads: dict[str, Any] = dict(self.heads.items())
        linking = heads.pop(AffinityHead.task, None)
        decoded = {task: head.decode(outputs[task], batch) for task, head in heads.items()}
        if linking is not None and batch is not None and batch.timestamp_us is not None:
            output = outputs[AffinityHead.task]
            decoded[AffinityHead.task] = linking.decode(output, batch, decoded["detection"])
        return decoded

    def _found(self, outputs: dict[str, Any], batch: Batch) -> list[Detections]:
        head: Any = self.heads["detection"]
        return head.decode(outputs["detection"], batch)


def withhold(batch: Batch, use_camera: bool | Tensor, use_lidar: bool | Tensor) -> Batch:
    """The batch without the images or points of samples that shall not use them."""
    if use_camera is not True:
        kept = _kept(use_camera, batch.image_sample)
        batch = replace(
            batch,
            images=batch.images[kept],
            image_sample=batch.image_sample[kept],
            bev_from_image=batch.bev_from_image[kept],
        )
    if use_lidar is not True:
        kept = _kept(use_lidar, batch.point_sample)
        batch = replace(batch, points=batch.points[kept], point_sample=batch.point_sample[kept])
    return batch


def _kept(use: bool | Tensor, sample: Tensor) -> Tensor:
    if isinstance(use, Tensor):
        return use.to(sample.device)[sample]
    return torch.full_like(sample, use, dtype=torch.bool)


def _channels(encoder: CameraEncoder | PillarEncoder | VoxelEncoder | None) -> int:
    return encoder.out_channels if encoder is not None else 0
