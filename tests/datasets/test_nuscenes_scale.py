"""Indexing does not go through Python objects, so it scales; the tool that measures it works."""

import json
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from bevstack.datasets.nuscenes.index import FrameIndex, build_index
from bevstack.datasets.nuscenes.reader import NuScenesReader

TOOL = Path(__file__).parents[2] / "tools" / "write_tables.py"
VERSION = "v1.0-mini"


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    root = tmp_path_factory.mktemp("tables")
    size = ["--version", VERSION, "--scenes", "10", "--samples", "60"]
    subprocess.run([sys.executable, TOOL, root, *size], check=True)
    build_index(root, VERSION)
    return root


def test_every_key_frame_has_its_sweeps_images_and_boxes(root):
    reader = NuScenesReader(root, VERSION, previous_sweeps=10)
    assert len(reader) == 60
    for i in range(len(reader)):
        frame = reader[i]
        lag = np.array([frame.timestamp_us - sweep.timestamp_us for sweep in frame.sweeps])
        assert np.all(np.diff(lag) == 50_000)
        assert len(frame.sweeps) == (1 if i % 6 == 0 else 11)
        assert len(frame.cameras) == 6
        assert {camera.timestamp_us for camera in frame.cameras} == {frame.timestamp_us}


def test_splits_partition_the_frames(root):
    parts = [set(NuScenesReader(root, VERSION, s).tokens) for s in ("mini_train", "mini_val")]
    assert [len(part) for part in parts] == [48, 12]
    assert parts[0] | parts[1] == set(NuScenesReader(root, VERSION).tokens)


def test_frames_of_a_scene_are_neighbours_in_time(root):
    reader = NuScenesReader(root, VERSION)
    frames = [reader[i] for i in range(len(reader))]
    for before, after in pairwise(frames):
        assert before.scene != after.scene or before.timestamp_us < after.timestamp_us
    changes = sum(a.scene != b.scene for a, b in pairwise(frames))
    assert changes == 9


def test_boxes_are_the_tables(root):
    records = json.loads((root / VERSION / "sample_annotation.json").read_text())
    index = FrameIndex.open(root, VERSION)
    assert len(index.boxes.rows) == len(records)
    reader = NuScenesReader(root, VERSION)
    of_sample: dict[str, list] = {}
    for record in records:
        of_sample.setdefault(record["sample_token"], []).append(record)
    for i, token in enumerate(reader.tokens):
        ours, theirs = reader.global_annotations(i), of_sample.get(token, [])
        assert ours.instance == tuple(record["instance_token"] for record in theirs)
        expected = np.reshape([record["translation"] for record in theirs], (-1, 3))
        np.testing.assert_allclose(ours.boxes.center, expected, atol=1e-9)
