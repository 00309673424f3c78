"""Measure a model on every cell: by one process or many, going on where a killed run stopped."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from ...datasets.corruptions import Identity
from ...datasets.dataset import epoch_seed
from ...datasets.errors import DataError
from ..evaluation.evaluate import EvaluationMetrics, Model, evaluate_model
from .attack import Attacked
from .cells import CLEAN, Cell
from .inputs import Damage, Seen, Watched, damage
from .store import CellStore

NUM_PROBES = 4  # frames on which the change of the inputs is measured


@dataclass(frozen=True)
class Shard:
    """Which cells are this process's: ``index``, ``index + count``, ... of the plan."""

    index: int = 0
    count: int = 1

    @staticmethod
    def parse(text: str) -> Shard:
        """``"2/8"``: the third of eight.

        Raises:
            ValueError: if it is something else.
        """
        found = re.fullmatch(r"(\d+)/(\d+)", text.strip())
        if not found or not int(found[1]) < int(found[2]):
            raise ValueError(f"shard is {text!r}; give i/n with 0 <= i < n, for instance 0/4")
        return Shard(int(found[1]), int(found[2]))


@dataclass(frozen=True)
class Subject:
    """What is measured, and on what.

    Args:
        model: anything that ``evaluate_model`` takes; an attack needs its ``loss`` too.
        data: a ``NuScenesData``: its encoder, validation steps and seed are used.
        reader: of the frames.
        device: of the model.
        whole: whether these are all frames of their scenes; nothing can be tracked otherwise.
    """

    model: Model
    data: Any
    reader: Any
    device: Any = "cpu"
    whole: bool = True

    @property
    def seed(self) -> int:
        """The seed that steps get (evaluation counts as epoch 0)."""
        return epoch_seed(self.data.seed, 0)

    @cached_property
    def clean_probes(self) -> dict[int, Seen]:
        """Frames, spread over all, on which the change of the inputs is measured, unchanged.

        Raises:
            DataError: if none of them can be read.
        """
        clean, found = Cell(CLEAN, "clean", 0, Identity()), {}
        for index in spread(len(self.reader), NUM_PROBES):
            try:
                found[int(index)] = self.seen(int(index), clean)
            except (DataError, OSError):
                if self.data.on_error != "skip":
                    raise
        if not found:
            raise DataError("none of the frames on which the change is measured can be read")
        return found

    def damage(self, cell: Cell) -> Damage:
        """The change of the inputs by a cell."""
        was_training = self.model.training
        self.model.train(False)
        pairs = [(clean, self.seen(i, cell)) for i, clean in self.clean_probes.items()]
        self.model.train(was_training)
        return damage(pairs)

    def seen(self, index: int, cell: Cell) -> Seen:
        """A frame as the cell makes it, at the network's size, and encoded."""
        frame = cell.step(self.reader[index], self.seed)
        for step in self.data.val_steps:
            frame = step(frame, self.seed)
        batch = self.data.encoder(frame)
        if cell.attack is not None:
            batch = cell.attack(self.model, batch.to(self.device), self.seed).to("cpu")  # type: ignore
        return Seen(frame, batch)


def run_cells(
    cells: Sequence[Cell],
    store: CellStore,
    measure: Callable[[Cell], dict[str, Any]],
    shard: Shard,
    say: Callable[[str], None] = print,
) -> list[Cell]:
    """Measure this process's cells, as far as nobody has.

    Cells that another process is measuring are left to it.

    Returns:
        The cells of the plan, other processes' included, that are not finished.
    """
    for number, cell in enumerate(cells):
        if number % shard.count != shard.index or store.read(cell) is not None:
            continue
        with store.claim(cell) as mine:
            # Another process may have finished it between the two looks.
            if not mine or store.read(cell) is not None:
                continue
            result = measure(cell)
            store.write(cell, result)
        scores = ", ".join(f"{k} {v:.3f}" for k, v in result["scores"].items())
        say(f"[{number + 1}/{len(cells)}] {cell.title}: {scores} ({result['seconds']:.1f} s)")
    return [cell for cell in cells if store.read(cell) is None]


def measure_cell(subject: Subject, cell: Cell) -> dict[str, Any]:
    """Everything that is kept of a cell; only ``seconds`` differs when it is measured again."""
    start = time.monotonic()
    loader: Any = subject.data.in_order(subject.reader, (cell.step, *subject.data.val_steps))
    if cell.attack is not None:
        seed = subject.seed
        loader = Attacked(loader, subject.model, cell.attack, seed, subject.device)
    watched = Watched(loader)
    with TemporaryDirectory(prefix="bevstack-cell-") as folder:
        metrics = evaluate_model(subject.model, watched, subject.reader, Path(folder))
    return {
        "group": cell.group,
        "name": cell.name,
        "severity": cell.severity,
        "fidelity": cell.fidelity,
        "parameters": cell.parameters,
        "scores": {k: v for k, v in metrics.headline().items() if subject.whole or k != "AMOTA"},
        "ranges": _ranges(metrics),
        "frames": metrics.num_frames,
        "skipped": list(metrics.skipped),
        "inputs": watched.digests,
        "damage": subject.damage(cell).to_json(),
        "seconds": round(time.monotonic() - start, 2),
    }


def spread(total: int, wanted: int | None) -> np.ndarray:
    """Indices of ``wanted`` of ``total`` frames, evenly spread; all if there are no more."""
    if wanted is None or wanted >= total:
        return np.arange(total)
    # The middles of as many equal parts.
    return ((np.arange(wanted) + 0.5) * total / wanted).astype(np.int64)


def _ranges(metrics: EvaluationMetrics) -> list[dict[str, float | None]]:
    """mAP and NDS by distance from the vehicle."""
    bands = metrics.detection.to_json()["range_aps"] if metrics.detection else []
    return [
        {"near": b["near"], "far": b["far"], "mAP": b["mean_ap"], "NDS": b["nd_score"]}
        for b in bands
    ]
