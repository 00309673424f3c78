"""Suites, their errors, and corruption in training."""

import numpy as np
import pytest
from scenes import street_frame

from bevstack.datasets.corruptions import (
    SUITES,
    Entry,
    Fidelity,
    Part,
    RandomCorruption,
    Suite,
    Touches,
    suite_of,
)
from bevstack.datasets.corruptions.lidar_drop import DropPoints


def part(*fractions, **changes):
    steps = tuple(map(DropPoints, fractions))
    return Part(Touches.LIDAR, steps, Fidelity.OWN_MODEL, "", **changes)


def test_unknown_suite_and_entry_name_what_there_is():
    with pytest.raises(ValueError, match="multicorrupt, robobev, robo3d, nuscenes_c"):
        suite_of("kitti_c")
    with pytest.raises(ValueError, match=r'no corruption "rain"; use .*pointsreducing'):
        suite_of("multicorrupt")["rain"]


def test_names_are_found_in_any_spelling():
    assert SUITES["robo3d"]["Cross Sensor"] is SUITES["robo3d"]["cross_sensor"]


def test_severity_that_does_not_exist_is_an_error():
    with pytest.raises(ValueError, match=r"no severity 4; give 0 .* to 3"):
        SUITES["multicorrupt"]["pointsreducing"].at(4)


def test_parts_of_one_name_make_one_entry():
    suite = Suite.of("made", "Made", {"loss": part(0.1, 0.2)}, {"loss": part(0.3, 0.4)})
    (entry,) = suite.entries
    clean = street_frame()
    left = len(entry.at(1)(clean, 0).sweeps[0].load()) / len(clean.sweeps[0].load())
    assert abs(left - 0.9 * 0.7) < 1e-3
    with pytest.raises(ValueError, match="number of severities"):
        Entry("loss", (part(0.1), part(0.1, 0.2)))


def test_published_flaws_come_only_when_asked_for():
    entry = Entry("loss", (part(0.1, published=(DropPoints(0.9),)), part(0.2)))
    clean = street_frame()
    count = len(clean.sweeps[0].load())
    assert abs(len(entry.at(1)(clean, 0).sweeps[0].load()) / count - 0.72) < 1e-3
    assert abs(len(entry.at(1, as_published=True)(clean, 0).sweeps[0].load()) / count - 0.08) < 1e-3
    with pytest.raises(ValueError, match="2 as published"):
        part(0.1, published=(DropPoints(0.9), DropPoints(0.9)))


def test_training_corrupts_with_the_probability_and_within_the_severities():
    step = RandomCorruption("multicorrupt", ("pointsreducing",), 0.5, (2, 3))
    clean = [street_frame(f"frame{i}") for i in range(60)]
    counts = np.array([len(step(frame, 0).sweeps[0].load()) for frame in clean])
    share = counts / len(clean[0].sweeps[0].load())
    assert 0.35 < np.mean(share < 1) < 0.65
    assert set(np.round(share[share < 1], 2)) == {0.2, 0.1}


def test_training_refuses_what_the_suite_does_not_have():
    with pytest.raises(ValueError, match="no corruption"):
        RandomCorruption("robo3d", ("rain",))
    with pytest.raises(ValueError, match="1 to 3"):
        RandomCorruption("robo3d", ("cross_sensor",), severities=(1, 5))
    with pytest.raises(ValueError, match="from 0 to 1"):
        RandomCorruption("robo3d", probability=2)


def test_training_step_comes_from_yaml(tmp_path):
    from jsonargparse import ArgumentParser

    from bevstack.datasets.dataset import Step

    path = tmp_path / "config.yaml"
    path.write_text(
        "step:\n  class_path: bevstack.datasets.corruptions.RandomCorruption\n"
        "  init_args: {suite: robo3d, names: [cross_sensor], severities: [1, 2]}\n"
    )
    parser = ArgumentParser()
    parser.add_argument("--config", action="config")
    parser.add_argument("--step", type=Step)
    step = parser.instantiate_classes(parser.parse_args(["--config", str(path)])).step
    assert step == RandomCorruption("robo3d", ("cross_sensor",), severities=(1, 2))
