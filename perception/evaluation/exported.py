"""An exported model in the place of the trained one: what evaluation asks of a model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch

from ...datasets.batch import Batch
from ...datasets.sensors import SensorInputs
from ..heads.occupancy import OccupancyVolume
from ..model import withhold
from ..runtime import Moment, Perception, Runtime, RuntimeOptions, RuntimeState
from ..runtime.manifest import OccupancySpec


class ExportedModel:
    """Runs an export on batches, sample by sample (see ``evaluate.Model``).

    Args:
        folder: what ``bevstack export`` wrote.
        options: of the runtime.
    """

    training = False

    def __init__(self, folder: Path | str, options: RuntimeOptions | None = None):
        self.runtime = Runtime(folder, options)
        # As in FusionModel: None for a branch that the model lacks.
        self.camera, self.lidar = self.runtime.manifest.camera, self.runtime.manifest.lidar
        # What ``step`` carries on, if anything.
        self.memory = self.runtime.manifest.tracker or self.runtime.manifest.memory

    def train(self, mode: bool = True) -> ExportedModel:
        """Nothing to do: an export does not train."""
        return self

    def __call__(
        self,
        batch: Batch,
        use_camera: bool | torch.Tensor = True,
        use_lidar: bool | torch.Tensor = True,
    ) -> dict[str, Any]:
        """Results of every sample, each on its own."""
        seen = withhold(batch, use_camera, use_lidar)
        return {"results": [self.runtime.infer(sensors_of(seen, i)) for i in range(batch.size)]}

    def step(
        self,
        batch: Batch,
        state: RuntimeState | None,
        use_camera: bool | torch.Tensor = True,
        use_lidar: bool | torch.Tensor = True,
    ) -> tuple[dict[str, Any], RuntimeState | None]:
        """Results of a stream's next samples, in their order; see ``FusionModel.step``."""
        seen, results = withhold(batch, use_camera, use_lidar), []
        for i in range(batch.size):
            results.append(self.runtime.infer(sensors_of(seen, i), moment_of(seen, i), state))
            state = results[-1].state
        return {"results": results}, state

    def decode(self, outputs: dict[str, Any], batch: Batch | None = None) -> dict[str, Any]:
        """The same types that ``FusionModel.decode`` gives, and ``TrackedDetections``."""
        results: list[Perception] = outputs["results"]
        decoded: dict[str, Any] = {}
        if results[0].detections is not None:
            decoded["detection"] = [result.detections for result in results]
        if results[0].tracks is not None:
            decoded["tracks"] = [result.tracks for result in results]
        if results[0].map is not None:
            decoded["map"] = torch.from_numpy(np.stack([r.map for r in results]))  # pyright: ignore
        if results[0].occupancy is not None:
            parts = zip(*(r.occupancy for r in results))  # pyright: ignore
            semantics, probability = (torch.from_numpy(np.stack(part)) for part in parts)
            spec = self.runtime.manifest.heads["occupancy"]
            assert isinstance(spec, OccupancySpec)
            decoded["occupancy"] = OccupancyVolume(semantics, probability, spec.grid)
        return decoded


def sensors_of(batch: Batch, sample: int) -> SensorInputs:
    """One sample of a batch as the runtime takes it."""
    images, points = batch.image_sample == sample, batch.point_sample == sample
    return SensorInputs(
        batch.images[images].numpy(),
        batch.bev_from_image[images].numpy(),
        batch.points[points].numpy(),
        batch.global_from_bev[sample].numpy(),
    )


def moment_of(batch: Batch, sample: int) -> Moment | None:
    """When one sample of a batch was; None where the batch does not say."""
    if batch.scene is None or batch.timestamp_us is None:
        return None
    return Moment(str(int(batch.scene[sample])), int(batch.timestamp_us[sample]))
