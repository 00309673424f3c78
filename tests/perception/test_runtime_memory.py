"""A model with memory in the runtime: frame for frame what the PyTorch stream gives."""

import shutil
from dataclasses import replace
from itertools import pairwise

import numpy as np
import onnx
import pytest
import torch
from model_parts import GRID, IMAGE_SIZE, make_batch, make_model

from bevstack.perception.evaluation.exported import moment_of, sensors_of
from bevstack.perception.export.half import to_half
from bevstack.perception.export.write import write_folder
from bevstack.perception.memory import BEVMemory, Stream
from bevstack.perception.runtime import Moment, Runtime, RuntimeOptions, read_manifest
from bevstack.perception.runtime.manifest import MemorySpec, SensorSpec

RANGE = (-12.8, -9.6, -3.0, 12.8, 9.6, 5.0)
SENSORS = SensorSpec("ego", RANGE, IMAGE_SIZE[::-1], (), 1, True, True, True)
OPTIONS = RuntimeOptions(threads=1)
# Scene and seconds: a drive, a missing frame, a gap longer than max_age, another scene, and the
# first scene once more.
STREAM = [(1, 0.0), (1, 0.5), (1, 1.0), (1, 2.0), (1, 4.5), (1, 5.0), (2, 5.5), (2, 6.0), (1, 0.5)]


def frames():
    found = []
    for i, (scene, seconds) in enumerate(STREAM):
        yaw, matrix = 0.2 * seconds, np.eye(4)
        c, s = np.cos(yaw), np.sin(yaw)
        matrix[:2, :2] = [[c, -s], [s, c]]
        matrix[:3, 3] = 600_000.0 + 3 * seconds, -1234.5 + seconds, 1.0
        batch = make_batch(1, cameras=1, points=300, seed=i)
        found.append(
            replace(
                batch,
                scene=torch.tensor([scene]),
                timestamp_us=torch.tensor([round(seconds * 1e6)]),
                global_from_bev=torch.from_numpy(matrix)[None],
            )
        )
    return found


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    torch.manual_seed(0)
    model = make_model()
    model.memory = BEVMemory(16, GRID, moments=2, width=8)
    moments = frames()
    with torch.no_grad():
        # What is merged begins at nothing, and normalisation at the identity.
        torch.nn.init.normal_(model.memory.merge[-1].weight, std=0.1)
        for first, second in pairwise(moments[:3]):
            state = model.train().step(first, None)[1]
            model.step(second, state)
    folder = tmp_path_factory.mktemp("memory")
    write_folder(model, SENSORS, folder / "parts")
    write_folder(model, SENSORS, folder / "single", single=True)
    return model.eval(), folder


def run_stream(runtime):
    """The raw outputs of all frames."""
    state, found = None, []
    for batch in frames():
        sensors, moment = sensors_of(batch, 0), moment_of(batch, 0)
        found.append(runtime.outputs(sensors, moment, state))
        state = runtime.infer(sensors, moment, state).state
    return found


@pytest.mark.parametrize("form", ["parts", "single"])
def test_a_stream_is_the_stream_in_pytorch(exported, form):
    model, folder = exported
    stream, changed = Stream(model), []
    with torch.inference_mode():
        for batch, found in zip(frames(), run_stream(Runtime(folder / form, OPTIONS))):
            outputs, alone = stream(batch), model(batch)["detection"].heatmap
            changed.append(not torch.allclose(outputs["detection"].heatmap, alone, atol=1e-3))
            for name, array in found.items():
                task, part = name.split(".")
                wanted = getattr(outputs[task], part).numpy()
                np.testing.assert_allclose(array, wanted, rtol=0, atol=1e-4, err_msg=name)
    # The memory is heard where there is an earlier moment, and only there.
    assert changed == [False, True, True, True, False, True, False, True, False]


def test_the_state_holds_as_much_as_is_looked_at_and_stays_as_it_was(exported):
    runtime, states = Runtime(exported[1] / "parts", OPTIONS), [None]
    moments = [(sensors_of(batch, 0), moment_of(batch, 0)) for batch in frames()[:4]]
    for sensors, moment in moments:
        states.append(runtime.infer(sensors, moment, states[-1]).state)
    assert [len(state.memory) for state in states[1:]] == [1, 2, 2, 2]
    # Going on from an earlier state once more gives the same bits.
    first = runtime.outputs(*moments[2], states[2])
    again = runtime.outputs(*moments[2], states[2])
    assert all(np.array_equal(first[name], again[name]) for name in first)


def test_a_frame_on_its_own_remembers_nothing(exported):
    model, folder = exported
    runtime, batch = Runtime(folder / "parts", OPTIONS), frames()[1]
    state = runtime.infer(sensors_of(batch, 0), Moment("1", 0)).state
    found = runtime.outputs(sensors_of(batch, 0), None, state)["detection.heatmap"]
    with torch.inference_mode():
        expected = model(batch)["detection"].heatmap.numpy()
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-4)


def test_the_manifest_and_the_graph_say_what_is_remembered(exported):
    folder = exported[1] / "parts"
    manifest = read_manifest(folder)
    assert manifest.memory == MemorySpec(2, 1.6)
    graph = manifest.graphs["fusion_heads"]
    shapes = {tensor.name: tensor.shape for tensor in (*graph.inputs, *graph.outputs)}
    assert shapes["past_map_1"] == shapes["fused_bev"] == (1, 16, *GRID.shape)
    assert shapes["past_transform"] == (1, 2, 4, 4)
    nodes = onnx.load(folder / graph.file).graph.node
    assert [node.op_type for node in nodes].count("GridSample") == 3  # moments, map head
    assert {node.domain for node in nodes} == {""}


def test_half_precision_finds_the_same_places(exported, tmp_path):
    _, folder = exported
    shutil.copytree(folder / "parts", tmp_path / "half")
    to_half(tmp_path / "half")
    expected, found = (
        run_stream(Runtime(f, OPTIONS)) for f in (folder / "parts", tmp_path / "half")
    )
    for ours, theirs in zip(found, expected):
        name = "detection.heatmap"
        assert np.median(abs(ours[name] - theirs[name])) < 0.02 * theirs[name].std()
