"""Exported models against PyTorch: every kind of sensor, encoder and head, whatever is missing."""

import os
import shutil
import subprocess
import sys
from dataclasses import replace
from functools import partial

import numpy as np
import onnx
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from model_parts import GRID, IMAGE_SIZE, MAP_GRID, make_batch, make_model

from bevstack.datasets.errors import DataError
from bevstack.datasets.sensors import SensorInputs
from bevstack.kernels.grid import BEVGrid
from bevstack.kernels.numba_segments import WIDTHS, bucket_segments, column_runs, group_rows
from bevstack.kernels.voxel_grid import VoxelGrid
from bevstack.perception.commands.exports import with_run_folder
from bevstack.perception.encoders import LSS, LSSFPN, CameraEncoder, DepthLSS, Swin, VoxelEncoder
from bevstack.perception.encoders.image_semantics import ImageSemantics
from bevstack.perception.evaluation.exported import ExportedModel
from bevstack.perception.export.half import to_half
from bevstack.perception.export.parity import Parity, compare_boxes
from bevstack.perception.export.write import write_folder
from bevstack.perception.fusion.class_evidence import ClassEvidence
from bevstack.perception.heads import AffinityHead, OccupancyHead, TransFusionHead
from bevstack.perception.runtime import Runtime, RuntimeOptions, read_manifest
from bevstack.perception.runtime.manifest import FORMAT, SensorSpec

RANGE = (-12.8, -9.6, -3.0, 12.8, 9.6, 5.0)
SENSORS = SensorSpec("ego", RANGE, IMAGE_SIZE[::-1], (), 1, True, True, True)
OPTIONS = RuntimeOptions(threads=1)
DENSE = ("detection.heatmap", "detection.regression", "map.logits", "occupancy.occupied")


def fusion():
    """Pillars, one-hot LiDAR depth, painting, the mean of a cell, finer pooling; three heads."""
    semantics = partial(ImageSemantics, map_grid=MAP_GRID, paint=True)
    model = make_model(semantics=semantics, lidar_depth="one_hot", mean=True, downsample=2)
    grid = VoxelGrid((-8.0, 8.0), (-6.4, 6.4), (-1.0, 2.2), 0.4)
    model.class_evidence = ClassEvidence(10)  # what is painted goes to the heat-maps too
    model.heads["occupancy"] = OccupancyHead(32, GRID, grid, channels=8, class_stride=2)
    return model


def published():
    """Swin, DepthLSS, voxels and object queries, as in MIT BEVFusion."""
    model = make_model(camera=False, heads=("detection",))
    model.camera = CameraEncoder(
        GRID,
        Swin(8, (1, 1, 2), (1, 2, 2), 4, 0.0, (2, 3)),
        partial(LSSFPN, out_channels=16),
        partial(DepthLSS, out_channels=8, depth_range=(1.0, 21.0), truncate_cells=True),
    )
    model.lidar = VoxelEncoder(GRID, (0.2, 0.2, 0.4), (-3.0, 5.0), (8, 8, 16), 1, 5, 300)
    model.fuser = type(model.fuser)(8, model.lidar.out_channels, 16)
    model.heads["detection"] = TransFusionHead(
        32, GRID, channels=16, num_queries=20, num_heads=2, ffn_channels=16, branch_channels=8,
        height_of="top", border_peaks=False,
    )  # fmt: skip
    with torch.no_grad():
        model.heads["detection"].heatmap[-1].weight *= 100  # peaks that are told apart
    return model


def camera_alone():
    """Cameras with BEVFusion's simpler view transform."""
    model = make_model(lidar=False)
    lift = partial(LSS, out_channels=8, depth_range=(1.0, 21.0))
    model.camera.lift = lift(16, GRID)
    model.heads["affinity"] = AffinityHead(32, GRID, channels=4)
    return model


def lidar_alone():
    return make_model(camera=False, heads=("map",))


MODELS = {f.__name__: f for f in (fusion, published, camera_alone, lidar_alone)}


@pytest.fixture(scope="module", params=MODELS)
def exported(request, tmp_path_factory):
    """A model whose batch normalisation has seen something, and its export."""
    model = MODELS[request.param]()
    with torch.no_grad():
        for seed in range(2):
            model.train()(make_batch(seed=seed))
    folder = tmp_path_factory.mktemp(request.param)
    write_folder(model, SENSORS, folder)
    return model.eval(), folder


def sensors_of(batch) -> SensorInputs:
    return SensorInputs(
        *(batch.images.numpy(), batch.bev_from_image.numpy(), batch.points.numpy()), np.eye(4)
    )


def check_outputs(model, runtime, batch):
    with torch.inference_mode():
        expected = model(batch)
    found = runtime.outputs(sensors_of(batch))
    assert found
    tied = "detection.peak" in found and (abs(np.diff(found["detection.peak"])) < 1e-6).any()
    for name, array in found.items():
        task, part = name.split(".")
        if tied and part != "heatmap":  # an untrained model: which of equal peaks are taken?
            continue
        wanted = getattr(expected[task], part).numpy()
        np.testing.assert_allclose(array, wanted, rtol=1e-3, atol=2e-4, err_msg=name)


@pytest.mark.parametrize("cameras", [1, 2, 5])
@pytest.mark.parametrize("points", [1, 400, 5000])
def test_outputs_are_those_of_the_model(exported, cameras, points):
    """Numbers of cameras, points and voxels are free."""
    model, folder = exported
    batch = make_batch(size=1, cameras=cameras, points=points, seed=cameras + points)
    check_outputs(model, Runtime(folder, OPTIONS), batch)


@pytest.mark.parametrize("missing", ["images", "points", "both"])
def test_a_missing_sensor_is_missing_in_both(exported, missing):
    model, folder = exported
    batch = make_batch(size=1, cameras=0 if missing != "points" else 2)
    if missing != "images":
        batch = replace(batch, points=batch.points[:0], point_sample=batch.point_sample[:0])
    check_outputs(model, Runtime(folder, OPTIONS), batch)


@pytest.mark.slow
def test_queries_that_refine_proposals_are_exported(tmp_path):
    model = make_model(camera=False, heads=("detection",))
    head = TransFusionHead(
        32, GRID, channels=16, num_queries=20, num_heads=2, ffn_channels=16, refine=True
    )
    with torch.no_grad():
        head.heatmap[-1].weight *= 100  # peaks that are told apart
        head.prediction["size"][-1].weight.normal_(std=0.1)
    model.heads["detection"] = head
    with torch.no_grad():
        model.train()(make_batch())
    write_folder(model.eval(), SENSORS, tmp_path)
    batch, runtime = make_batch(size=1, cameras=0, seed=3), Runtime(tmp_path, OPTIONS)
    check_outputs(model, runtime, batch)
    (wanted,) = model.decode(model(batch))["detection"]
    found = runtime.infer(sensors_of(batch)).detections
    np.testing.assert_allclose(found.score, wanted.score, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(found.boxes.size, wanted.boxes.size, rtol=1e-3, atol=1e-3)


def test_results_are_those_of_the_model(exported):
    model, folder = exported
    batch = make_batch(size=2, seed=3)
    with torch.inference_mode():
        expected = model.decode(model(batch), batch)
    exported_model = ExportedModel(folder, OPTIONS)
    found = exported_model.decode(exported_model(batch), batch)
    assert found.keys() == expected.keys()
    for ours, theirs in zip(found.get("detection", ()), expected.get("detection", ())):
        parity = Parity()
        compare_boxes(theirs, ours, parity, least_score=0.0)
        assert len(ours) == len(theirs)
        assert parity.num_boxes > 10
        # An untrained model: equal scores at the end of the list may change places.
        assert parity.box_agreement > 0.98
        assert parity.box.largest < 1e-3
    if "map" in expected:
        torch.testing.assert_close(found["map"], expected["map"], rtol=0, atol=1e-4)
    if "occupancy" in expected:
        volumes = found["occupancy"], expected["occupancy"]
        ours, theirs = (v.semantics for v in volumes)
        assert (ours != theirs).float().mean() < 1e-3
        same = ours == theirs
        torch.testing.assert_close(*(v.probability[same] for v in volumes), rtol=1e-3, atol=1e-4)


def test_what_links_two_frames_is_no_task_of_the_manifest(exported):
    model, folder = exported
    manifest = read_manifest(folder)
    assert set(manifest.heads) == set(model.heads) - {"affinity"}
    assert (manifest.affinity is not None) == ("affinity" in model.heads)


def test_a_hundred_runs_have_the_same_bits(exported):
    _, folder = exported
    runtime, sensors = Runtime(folder, RuntimeOptions(threads=2)), sensors_of(make_batch(size=1))
    first = runtime.outputs(sensors)
    for _ in range(99):
        again = runtime.outputs(sensors)
        assert all(np.array_equal(again[name], first[name]) for name in first)


def test_graphs_have_standard_operators_only(exported):
    _, folder = exported
    manifest = read_manifest(folder)
    for graph in manifest.graphs.values():
        nodes = onnx.load(folder / graph.file).graph.node
        assert {node.domain for node in nodes} <= {"", "ai.onnx"}
        assert not [n for n in nodes if n.op_type == "ScatterND"]  # races in ONNX Runtime


def test_one_file_is_the_same_model_too(exported, tmp_path):
    model, folder = exported
    write_folder(model, SENSORS, tmp_path, single=True)
    files = {"model.onnx"} | ({"affinity.onnx"} if "affinity" in model.heads else set())
    assert {path.name for path in tmp_path.glob("*.onnx")} == files
    parts, whole = Runtime(folder, OPTIONS), Runtime(tmp_path, OPTIONS)
    for cameras, points in ((2, 400), (0, 400), (2, 0), (0, 0)):
        sensors = sensors_of(make_batch(size=1, cameras=cameras, points=points))
        expected = parts.outputs(sensors)
        for name, array in whole.outputs(sensors).items():
            np.testing.assert_allclose(array, expected[name], rtol=1e-4, atol=1e-5, err_msg=name)


def test_half_precision_is_near_and_half_the_size(exported):
    _, folder = exported
    half = folder.with_name(folder.name + "_half")
    shutil.copytree(folder, half)
    to_half(half)
    sizes = [sum(g.bytes for g in read_manifest(f).graphs.values()) for f in (folder, half)]
    assert sizes[1] < 0.9 * sizes[0]  # of a small model the nodes are a large part
    for spec in read_manifest(half).graphs.values():
        graph = onnx.load(half / spec.file).graph
        casts = {n.output[0]: n.input[0] for n in graph.node if n.op_type == "Cast"}
        inputs = {tensor.name for tensor in graph.input}
        assert not [name for name in casts.values() if casts.get(name) in inputs], "metres rounded"
    sensors = sensors_of(make_batch(size=1))
    expected = Runtime(folder, OPTIONS).outputs(sensors)
    for name, array in Runtime(half, OPTIONS).outputs(sensors).items():
        if name in DENSE:  # queries may come in another order
            spread = expected[name].std()
            assert np.median(abs(array - expected[name])) < 0.02 * spread + 1e-3, name


def test_a_changed_file_or_manifest_is_refused(tmp_path):
    with pytest.raises(DataError, match="bevstack export"):
        read_manifest(tmp_path)
    write_folder(lidar_alone(), SENSORS, tmp_path)
    path, graph = tmp_path / "manifest.json", tmp_path / "fusion_heads.onnx"
    text = path.read_text()
    for broken, message in (
        ("{", "not JSON"),
        (text.replace(f'"format": {FORMAT}', '"format": 7'), "format 7"),
        (text.replace('"pillar_size": 0.4', '"pillar_size": "wide"'), "lidar.pillar_size"),
        (text.replace('"kind": "map"', '"kind": "lanes"'), "heads.map"),
        (text.replace('"file": "lidar.onnx"', '"file": "../lidar.onnx"'), "not a file name"),
    ):
        path.write_text(broken)
        with pytest.raises(DataError, match=message):
            read_manifest(tmp_path)
    path.write_text(text)
    graph.write_bytes(graph.read_bytes()[:-1] + b"\0")
    with pytest.raises(DataError, match="checksum"):
        Runtime(tmp_path)


@settings(max_examples=50, deadline=None)
@given(
    counts=st.lists(st.integers(0, 40) | st.sampled_from([0, 1, 1000, 3000]), max_size=30),
    seed=st.integers(0, 1000),
)
def test_segments_add_up_and_find_maxima(counts, seed):
    random = np.random.default_rng(seed)
    segment = random.permutation(np.repeat(np.arange(-1, len(counts)), [3, *counts]))
    values = random.integers(0, 100, (len(segment) + 1, 2)).astype(np.float64)
    values[-1] = 0
    first, rows = group_rows(segment, len(counts))
    for filler, reduce in ((len(segment), np.sum), (None, np.max)):
        found = bucket_segments(first, rows, filler)
        assert [b.shape[1] for b in found.buckets[:-1]] == list(WIDTHS)
        result = np.concatenate([reduce(values[b], axis=1) for b in found.buckets])[found.place]
        for s, count in enumerate(counts):
            if count:
                assert np.array_equal(result[s], reduce(values[:-1][segment == s], axis=0))
            elif filler is not None:
                assert not result[s].any()


def test_column_runs_pool_like_the_definition():
    random = np.random.default_rng(0)
    grid = BEVGrid((-4, 4), (-3, 3), 0.5)
    N, D, H, W, C = 2, 5, 6, 3, 4
    cell = random.integers(-1, 6, (N, D, H, W)).repeat(2, axis=2)[:, :, :H]
    depth, features = random.random((N, D, H, W)), random.random((N, H, W, C))
    plan = column_runs(np.ascontiguousarray(cell), grid.num_cells)
    lines = depth.transpose(0, 3, 1, 2).reshape(-1, H)
    columns = features.transpose(0, 2, 1, 3).reshape(-1, H, C)
    runs = ((lines[plan.bins] * plan.mask) @ columns).reshape(-1, C)
    sums = np.concatenate([runs[rows].sum(1) for rows in plan.cells.buckets])[plan.cells.place]
    expected = np.zeros((grid.num_cells, C))
    for n, d, h, w in np.ndindex(cell.shape):
        if cell[n, d, h, w] >= 0:
            expected[cell[n, d, h, w]] += depth[n, d, h, w] * features[n, h, w]
    np.testing.assert_allclose(sums, expected, rtol=1e-12)


BLOCKED = """
import sys
import time

class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("torch", "transformers", "onnx", "pytorch_lightning"):
            raise ImportError(f"{name} must not be imported")

sys.meta_path.insert(0, Blocker())
import numpy as np
import bevstack.perception.commands.infer
from bevstack.datasets.sensors import SensorInputs
from bevstack.perception.runtime import Moment, Runtime
runtime = Runtime(sys.argv[1])
sensors = SensorInputs(
    np.zeros((1, 3, *runtime.manifest.sensors.image_size[::-1]), np.uint8),
    np.array([[[0, 0, 1, 0], [-0.05, 0, 1, 0], [0, -0.05, 1, 1], [0, 0, 0, 1]]], np.float32),
    np.random.default_rng(0).uniform(-9, 9, (500, 5)).astype(np.float32),
    np.eye(4),
)
found = runtime.infer(sensors, Moment("scene", 0))
assert found.detections is not None and found.map is not None and found.tracks is not None
assert "torch" not in sys.modules
used = time.process_time()
time.sleep(0.3)
used = time.process_time() - used
assert used < 0.05, f"threads went on for {used} s after the frame"
"""


def test_the_runtime_runs_where_torch_cannot_be_imported(tmp_path):
    write_folder(make_model(), SENSORS, tmp_path)
    environment = {**os.environ, "OPENBLAS_NUM_THREADS": "2"}
    subprocess.run([sys.executable, "-c", BLOCKED, tmp_path], check=True, env=environment)


def test_a_runtime_option_that_cannot_be_had_is_named(tmp_path):
    write_folder(lidar_alone(), SENSORS, tmp_path)
    with pytest.raises(DataError, match="NoSuchProvider"):
        Runtime(tmp_path, RuntimeOptions(("NoSuchProvider",)))


def test_the_export_stands_for_a_run_folder_left_out():
    assert with_run_folder(["--runtime", "a", "--split", "b"]) == [
        "a",
        "--runtime",
        "a",
        "--split",
        "b",
    ]
    assert with_run_folder(["--runtime=a"]) == ["a", "--runtime=a"]
    assert with_run_folder(["run", "--runtime", "a"]) == ["run", "--runtime", "a"]
    assert with_run_folder(["--help"]) == ["--help"]
