"""The sums of tools/bench_corruptions.py, on cells made by hand."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "tools"))
from bench_corruptions import CLOUDS_PER_FRAME, PEERS, Cell, projected_hours, row, summary

from bevstack.datasets.corruptions import SUITES


def cell(suite="multicorrupt", name="snow", severity=1, lidar_ms=10.0, camera_ms=500.0):
    return Cell(suite, name, severity, lidar_ms, camera_ms, 21_000, 1310, 0.1, 0.2, -0.5, 0.9, 12.0)


def test_projection_counts_sweeps_for_the_lidar_and_key_images_for_the_cameras():
    cells = [cell(), cell(severity=2), cell("robo3d", "fog")]
    hours = 2 * 6019 * (CLOUDS_PER_FRAME * 10 + 500) / 1000 / 3600
    assert projected_hours(cells) == pytest.approx(hours)


def test_halves_are_compared_with_halves():
    assert (cell().lidar_ratio, cell().camera_ratio) == pytest.approx((2100, 2.62))
    assert cell(camera_ms=0.0).camera_ratio is None
    assert "| 2,100 |" in row(cell())


def test_summary_names_what_is_slower():
    assert "slower than the original: none" in summary([cell()])[0]
    assert "slower than the original: snow" in summary([cell(camera_ms=2000.0)])[0]


def test_figures_of_the_originals_are_of_entries_and_severities_there_are():
    known = {(s.name, e.name): e.severities for s in SUITES.values() for e in s.entries}
    for key, halves in PEERS.items():
        if key in known:
            assert {len(times) for times in halves.values()} == {known[key]}
