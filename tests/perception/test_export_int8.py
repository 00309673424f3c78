"""8-bit exports: what they are made of, how near they are, and which layers stay in float."""

from dataclasses import replace
from functools import partial

import numpy as np
import onnx
import pytest
import torch
from model_parts import GRID, IMAGE_SIZE, MAP_GRID, make_batch, make_model
from onnx import TensorProto, helper
from onnx.numpy_helper import from_array, to_array

from bevstack.perception.encoders.image_semantics import ImageSemantics
from bevstack.perception.export import int8
from bevstack.perception.export.example import example_frame
from bevstack.perception.export.half import to_half
from bevstack.perception.export.storage import factor_positions, store_weights_in_8_bits
from bevstack.perception.export.write import write_folder
from bevstack.perception.heads import AffinityHead
from bevstack.perception.runtime import Runtime, RuntimeOptions, read_manifest
from bevstack.perception.runtime.manifest import SensorSpec

RANGE = (-12.8, -9.6, -3.0, 12.8, 9.6, 5.0)
SENSORS = SensorSpec("ego", RANGE, IMAGE_SIZE[::-1], (), 1, True, True, True)
OPTIONS = RuntimeOptions(threads=1)
FRAMES = [example_frame(SENSORS, num_cameras=n) for n in (1, 2)]


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """A float export of a model whose batch normalisation has seen something."""
    model = make_model(semantics=partial(ImageSemantics, map_grid=MAP_GRID, paint=True))
    with torch.no_grad():
        for seed in range(2):
            model.train()(make_batch(seed=seed))
    folder = tmp_path_factory.mktemp("fp32")
    write_folder(model, SENSORS, folder)
    return folder


def converted(exported, folder, least, monkeypatch, faster=lambda search, name: True):
    monkeypatch.setattr(int8._Search, "is_faster", faster)
    for path in exported.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    return int8.to_int8(folder, FRAMES, least)


def test_all_layers_compute_in_8_bits_where_results_may_change(exported, tmp_path, monkeypatch):
    spec = converted(exported, tmp_path, 0.0, monkeypatch)
    manifest = read_manifest(tmp_path)
    assert manifest.precision == "int8"
    assert manifest.quantization == spec
    assert spec.frames == 2
    assert not any(spec.float_layers.values())
    for graph in manifest.graphs.values():
        model = onnx.load(tmp_path / graph.file)
        assert {node.domain for node in model.graph.node} <= {"", "ai.onnx"}
        made = {output: node for node in model.graph.node for output in node.output}
        for node in model.graph.node:
            if node.op_type in ("Conv", "Gemm"):
                assert made[node.input[0]].op_type == "DequantizeLinear"
                weight = made[node.input[1]]
                assert weight.op_type == "DequantizeLinear"
                (scale,) = (t for t in model.graph.initializer if t.name == weight.input[1])
                (integers,) = (t for t in model.graph.initializer if t.name == weight.input[0])
                assert integers.data_type == TensorProto.INT8
                assert len(to_array(scale)) == integers.dims[0]  # one per output channel
    outputs, expected = (
        Runtime(folder, OPTIONS).outputs(Runtime(folder).sensors(FRAMES[1]))
        for folder in (tmp_path, exported)
    )
    for name, array in expected.items():
        assert np.sqrt(np.mean((outputs[name] - array) ** 2)) < 0.2 * array.std(), name


def test_the_layers_with_the_largest_errors_stay_in_float(exported, tmp_path, monkeypatch):
    """As few of them as the agreement needs."""
    layers = []
    monkeypatch.setattr(
        int8._Search, "error_of", lambda search, layer: layers.append(layer) or -len(layers)
    )
    needed = 5
    monkeypatch.setattr(
        int8._Search,
        "reached",
        lambda search, chosen, scratch: {"map": 0.9 + 0.01 * (len(layers) - len(chosen))},
    )
    spec = converted(exported, tmp_path, 0.9 + 0.01 * needed - 0.001, monkeypatch)
    kept = [(graph, node) for graph, nodes in spec.float_layers.items() for node in nodes]
    assert kept == layers[:needed]
    for graph, node in kept:
        model = onnx.load(tmp_path / read_manifest(tmp_path).graphs[graph].file)
        (found,) = (n for n in model.graph.node if n.name == node)
        producers = {output: n for n in model.graph.node for output in n.output}
        weight = producers.get(found.input[1])  # small weights are not worth rounding
        assert weight is None or weight.op_type == "Mul"


def test_a_graph_that_8_bits_do_not_speed_up_computes_in_float(exported, tmp_path, monkeypatch):
    spec = converted(exported, tmp_path, 0.0, monkeypatch, lambda search, name: name != "camera")
    kinds = {n.op_type for n in onnx.load(tmp_path / "camera.onnx").graph.node}
    assert "QuantizeLinear" not in kinds
    assert spec.float_layers["camera"]
    assert not spec.float_layers["fusion_heads"]


@pytest.mark.parametrize("precision", ["fp16", "int8"])
def test_a_learned_affinity_goes_with_every_precision(tmp_path, precision):
    model = make_model(camera=False, heads=("detection",))
    model.heads["affinity"] = head = AffinityHead(32, GRID, channels=4)
    torch.nn.init.normal_(head.pair[-1].weight)
    with torch.no_grad():
        for seed in range(2):
            model.train()(make_batch(seed=seed, cameras=0))
    sensors = replace(SENSORS, image_size=None, cameras=False)
    write_folder(model, sensors, tmp_path)
    exact = Runtime(tmp_path, OPTIONS)
    before = (tmp_path / "affinity.onnx").read_bytes()
    stream = [example_frame(sensors, timestamp_us=n * 500_000) for n in range(2)]
    if precision == "fp16":
        to_half(tmp_path)
    else:
        int8.to_int8(tmp_path, stream, 0.0)
        assert (tmp_path / "affinity.onnx").read_bytes() == before
    runtime, state = Runtime(tmp_path, OPTIONS), None
    for frame in stream:
        last, state = state, runtime.run(frame, state).state
    said = runtime.link(last.linked, state.linked)
    assert said.match.size > 100
    expected = exact.link(last.linked, state.linked)
    np.testing.assert_allclose(said.match, expected.match, atol=0.01)


def test_an_agreement_that_cannot_be_had_is_refused(exported, tmp_path, monkeypatch):
    monkeypatch.setattr(int8._Search, "error_of", lambda search, layer: 0.0)
    monkeypatch.setattr(int8._Search, "reached", lambda search, chosen, scratch: {"map": 0.99})
    with pytest.raises(ValueError, match="agreement"):
        converted(exported, tmp_path, 0.995, monkeypatch)


@pytest.mark.parametrize("kind", ["Conv", "ConvTranspose", "Gemm", "MatMul"])
def test_weights_stored_in_8_bits_are_rounded_by_channel_and_folded_back(kind):
    import onnxruntime as ort

    random = np.random.default_rng(0)
    shape = (48, 32, 1, 1) if kind.startswith("Conv") else (48, 32)
    output_axis = 0 if kind == "Conv" else 1
    weight = random.normal(size=shape).astype(np.float32)
    sizes = 10.0 ** random.uniform(-3, 3, shape[output_axis])
    weight *= sizes.astype(np.float32).reshape(
        [-1 if a == output_axis else 1 for a in range(len(shape))]
    )
    inputs = shape[1 - output_axis]
    x = random.normal(size=(4, inputs, 1, 1)[: len(shape)]).astype(np.float32)
    graph = helper.make_graph(
        [helper.make_node(kind, ["x", "w"], ["y"])],
        "one",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, x.shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["a", "b", "c", "d"][: len(shape)])],
        [from_array(weight, "w")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)

    def run():
        session = ort.InferenceSession(
            model.SerializeToString(), providers=["CPUExecutionProvider"]
        )
        return session.run(None, {"x": x})[0].reshape(4, -1)

    before, size = run(), len(model.SerializeToString())
    store_weights_in_8_bits(model)
    onnx.checker.check_model(model)
    assert len(model.SerializeToString()) < 0.4 * size
    # A weight is off by at most half a step of its own channel.
    bound = np.abs(x).reshape(4, -1).sum(1)[:, None] * np.abs(weight).max(1 - output_axis).ravel()
    assert (np.abs(run() - before) <= bound / 254 * 1.001).all()


def test_sampling_positions_of_a_grid_are_stored_as_a_row_and_a_column():
    import onnxruntime as ort

    rows, columns = np.linspace(-0.9, 0.8, 40), np.linspace(-0.7, 1.0, 30)
    grid = np.stack(np.broadcast_arrays(columns[None], rows[:, None]), -1)[None].astype(np.float32)
    sheared = grid.copy()
    sheared[..., 0] += 0.1 * sheared[..., 1]
    features = np.random.default_rng(0).normal(size=(1, 3, 8, 9)).astype(np.float32)
    for positions, smaller in ((grid, True), (sheared, False)):
        constant = helper.make_node("Constant", [], ["grid"], value=from_array(positions))
        graph = helper.make_graph(
            [constant, helper.make_node("GridSample", ["x", "grid"], ["y"])],
            "one",
            [helper.make_tensor_value_info("x", TensorProto.FLOAT, features.shape)],
            [helper.make_tensor_value_info("y", TensorProto.FLOAT, (1, 3, 40, 30))],
        )
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
        found = []
        for _ in range(2):
            session = ort.InferenceSession(
                model.SerializeToString(), providers=["CPUExecutionProvider"]
            )
            found.append(session.run(None, {"x": features})[0])
            size = len(model.SerializeToString())
            factor_positions(model)
        onnx.checker.check_model(model)
        assert np.array_equal(*found)
        assert (size < 4000) == smaller
