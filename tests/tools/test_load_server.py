"""The server under load, in small; the tool's own run has a thousand frames."""

import sys
from dataclasses import replace
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
sys.path += [str(ROOT / "tools"), str(ROOT / "tests" / "perception")]

from load_server import measure, write  # noqa: E402
from serving_parts import SENSORS, write_tiny_export  # noqa: E402

from bevstack.perception.export.example import example_frame  # noqa: E402


@pytest.mark.slow
def test_nothing_is_lost_under_load_bad_messages_and_a_killed_client(tmp_path):
    frames = [replace(example_frame(SENSORS), token=f"{i}") for i in range(4)]
    figures = measure(write_tiny_export(tmp_path), frames, 120, threads=1)
    assert figures["lost"] == figures["wrong"] == figures["queue_depth_at_the_end"] == 0
    assert figures["exit_status"] == 0
    assert figures["killed_with_its_client"] == 1
    outcomes = figures["outcomes"]
    assert set(outcomes["good"]) == {"200"}
    assert set(outcomes["malformed"]) == {"400"}
    assert set(outcomes["oversized"]) == {"413"}
    assert sum(sum(by.values()) for by in outcomes.values()) == 119
    memory = figures["memory_mb"]
    assert memory["end"] < 1.1 * memory["start"] + 20
    where = {"command": "c", "commit": "d", "date": "e", "machine": "f"}
    write(tmp_path / "serving", figures, where)
    assert "| good, answered 200 | " in (tmp_path / "serving.md").read_text()
