"""The cells of the benchmark: a corruption at one severity is measured in one go."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from ...datasets.corruptions import Identity, suite_of
from ...datasets.corruptions.sensor_loss import LoseSensors
from ...datasets.dataset import Step
from .attack import PatchAttack

CLEAN, SENSORS, ATTACK = "clean", "sensors", "attack"  # groups of rows that are no suite


@dataclass(frozen=True)
class Cell:
    """One measurement.

    Args:
        group: name of the suite; ``clean``, ``sensors`` or ``attack`` for rows outside them.
        name: of the corruption.
        severity: from 1; 0 is the clean run.
        step: what is done to every frame.
        fidelity: how near the corruption is to the benchmark's own.
        attack: what is done to the images after everything else.
    """

    group: str
    name: str
    severity: int
    step: Step
    fidelity: str = ""
    attack: PatchAttack | None = None

    @property
    def key(self) -> str:
        """The name of its file, without the ending."""
        return f"{_plain(self.group)}.{_plain(self.name)}.{self.severity}"

    @property
    def title(self) -> str:
        """What people call it."""
        return "clean" if self.group == CLEAN else f"{self.group} {self.name} {self.severity}"

    @property
    def parameters(self) -> str:
        """What is done, with every number; the same on every machine."""
        return re.sub(r" at 0x[0-9a-f]+", "", repr(self.attack or self.step))


def plan(
    suites: Sequence[str],
    corruptions: Sequence[str] = (),
    severities: Sequence[int] = (),
    as_published: bool = False,
    cameras: Iterable[str] = (),
    lidar: bool = True,
    attack: PatchAttack | None = None,
) -> tuple[Cell, ...]:
    """All cells, the clean one first.

    Args:
        suites: names of the suites.
        corruptions: entries to measure; none given means all.
        severities: to measure, as far as an entry has them; none given means all.
        as_published: with the benchmarks' flaws.
        cameras: channels that can be lost; none for a model without cameras.
        lidar: whether there is a LiDAR to lose.
        attack: adds the row of the attacked images.

    Raises:
        ValueError: if a suite or corruption does not exist, or nothing is left to measure.
    """
    cells = [Cell(CLEAN, "clean", 0, Identity())]
    cells += lost_sensors(tuple(cameras), lidar)
    if attack is not None:
        cells.append(Cell(ATTACK, "camera patch", 1, Identity(), attack=attack))
    for name in suites:
        suite = suite_of(name)
        entries = [suite[c] for c in corruptions] if corruptions else list(suite.entries)
        for entry in entries:
            fidelity = ", ".join(dict.fromkeys(part.fidelity.value for part in entry.parts))
            for severity in range(1, entry.severities + 1):
                if not severities or severity in severities:
                    step = entry.at(severity, as_published)
                    cells.append(Cell(suite.name, entry.name, severity, step, fidelity))
    if len(cells) == 1:
        raise ValueError("there is nothing to measure; name a suite, or other severities")
    return tuple(cells)


def lost_sensors(cameras: tuple[str, ...], lidar: bool) -> list[Cell]:
    """A cell for each sensor that is gone, and for all cameras together, gone and black."""
    cells = []
    if lidar:
        cells.append(Cell(SENSORS, "LiDAR lost", 1, LoseSensors(lidar=True)))
    if cameras:
        gone, black = LoseSensors(cameras, absent=True), LoseSensors(cameras)
        cells.append(Cell(SENSORS, "all cameras lost", 1, gone))
        cells.append(Cell(SENSORS, "all cameras black", 1, black))
    single = [(camera, LoseSensors((camera,), absent=True)) for camera in cameras]
    return cells + [Cell(SENSORS, f"{camera} lost", 1, step) for camera, step in single]


def _plain(text: str) -> str:
    return re.sub(r"[^a-z0-9]+", "_", text.lower()).strip("_")
