"""Run a model over batches in the order of time."""

from __future__ import annotations

from typing import Any

from ...datasets.batch import Batch
from .moments import Moments


class Stream:
    """Calls a model and carries its memory, if it has one, from batch to batch.

    Scenes may follow one another: moments of another scene are not looked at.
    """

    def __init__(self, model: Any) -> None:
        self.model = model
        self.state: Moments | None = None

    def __call__(self, batch: Batch, **sensors: Any) -> dict[str, Any]:
        """The model's outputs for the batch (see ``FusionModel.forward``)."""
        if getattr(self.model, "memory", None) is None:
            return self.model(batch, **sensors)
        outputs, self.state = self.model.step(batch, self.state, **sensors)
        return outputs
