"""A dumped frame holds all that a program without this project needs to run the graphs."""

from dataclasses import replace

import numpy as np
import onnxruntime
import pytest
import torch
from model_parts import GRID, IMAGE_SIZE, make_batch, make_model

from bevstack.perception.export.example import example_frame
from bevstack.perception.export.write import write_folder
from bevstack.perception.memory import BEVMemory
from bevstack.perception.runtime import RuntimeOptions
from bevstack.perception.runtime.dump import record, write_dump
from bevstack.perception.runtime.manifest import SensorSpec

RANGE = (-12.8, -9.6, -3.0, 12.8, 9.6, 5.0)
SENSORS = SensorSpec("ego", RANGE, IMAGE_SIZE[::-1], (), 1, True, True, True)
OPTIONS = RuntimeOptions(threads=1)


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    model = make_model()
    model.memory = BEVMemory(16, GRID, moments=1, width=8)
    with torch.no_grad():
        batch = make_batch(1)
        state = model.step(replace(batch, scene=torch.zeros(1), timestamp_us=torch.zeros(1)), None)
    assert state[1] is not None
    return model.eval()


def read_and_run(export, dump):
    """Runs the graphs as the header says; the largest difference by output."""
    lines = [line.split(" ") for line in (dump / "frame.txt").read_text().splitlines()]
    assert lines[0] == ["bevstack-frame", "1"]
    assert lines[1][0] == "token"
    found, differences, files = {}, {}, {"frame.txt"}
    inputs, expected, graph = {}, {}, None

    def run():
        session = onnxruntime.InferenceSession(export / graph)
        for name, array in zip(expected, session.run(list(expected), inputs)):
            assert array.shape == expected[name].shape
            differences[name] = abs(array - expected[name]).max()
            found[name] = array

    for kind, name, *words in [*lines[2:], ["graph", ""]]:
        if kind == "graph":
            if graph:
                run()
            inputs, expected, graph = {}, {}, name
            continue
        dtype, axes, *shape, file = words
        assert int(axes) == len(shape)
        if file == "-":
            array = found[name]
        else:
            files.add(file)
            array = np.fromfile(dump / file, np.dtype(dtype).newbyteorder("<"))
        (inputs if kind == "input" else expected)[name] = array.reshape([int(n) for n in shape])
    assert files == {path.name for path in dump.iterdir()}
    return differences


@pytest.mark.parametrize("single", [False, True])
def test_the_graphs_give_the_dumped_outputs_of_the_dumped_inputs(model, tmp_path, single):
    write_folder(model, SENSORS, tmp_path / "export", single=single)
    frames = [example_frame(SENSORS, timestamp_us=t) for t in (0, 500_000)]
    runs = record(tmp_path / "export", frames, OPTIONS)
    assert [run.graph.file for run in runs] == (
        ["model.onnx"] if single else ["camera.onnx", "lidar.onnx", "fusion_heads.onnx"]
    )
    assert runs[-1].inputs["past_valid"].all()  # the frame before is looked at
    assert runs[-1].inputs["past_map_0"].any()
    write_dump(tmp_path / "dump", "token", runs)
    differences = read_and_run(tmp_path / "export", tmp_path / "dump")
    assert "detection.heatmap" in differences
    assert max(differences.values()) < 1e-5


def test_a_frame_without_a_sensor_brings_the_map_that_stands_for_it(model, tmp_path):
    write_folder(model, SENSORS, tmp_path / "export")
    frame = replace(example_frame(SENSORS), cameras=())
    runs = record(tmp_path / "export", [frame], OPTIONS)
    assert [run.graph.file for run in runs] == ["lidar.onnx", "fusion_heads.onnx"]
    assert not runs[-1].inputs["camera_bev"].any()
    write_dump(tmp_path / "dump", "token", runs)
    assert max(read_and_run(tmp_path / "export", tmp_path / "dump").values()) < 1e-5
