"""Measure a model on every cell: by one process or many, going on where a killed run stopped."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from ...datasets.dataset import epoch_seed
from ...datasets.errors import DataError
from ..evaluation.evaluate import EvaluationMetrics, Model, evaluate_model
from .attack import Attacked
from .cells import Cell
from .inputs import Damage, Seen, Watched, damage
from .store import CellStore

NUM_PROBES = 8  # frames on which the change of the inputs is measured


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
    """

    model: Model
    data: Any
    reader: Any
    device: Any = "cpu"

    @property
    def seed(self) -> int:
        """The seed that steps get (evaluation counts as epoch 0)."""
        return epoch_seed(self.data.seed, 0)

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
        "scores": metrics.headline(),
        "ranges": _ranges(metrics),
        "frames": metrics.num_frames,
        "skipped": list(metrics.skipped),
        "inputs": watched.digests,
        "damage": probe_damage(subject, cell).to_json(),
        "seconds": round(time.monotonic() - start, 2),
    }


def probe_damage(subject: Subject, cell: Cell, num_probes: int = NUM_PROBES) -> Damage:
    """The change of the inputs, measured on some frames spread over all of them."""
    clean = Cell("clean", "clean", 0, lambda frame, seed: frame)
    pairs = []
    model_was_training = subject.model.training
    subject.model.train(False)
    for index in spread(len(subject.reader), num_probes):
        try:
            pairs.append((subject.seen(int(index), clean), subject.seen(int(index), cell)))
        except (DataError, OSError):
            if subject.data.on_error != "skip":
                raise
    subject.model.train(model_was_training)
    if not pairs:
        raise DataError("none of the frames on which the change is measured can be read")
    return damage(pairs)


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
