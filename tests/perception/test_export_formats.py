"""What an export can hold beside its ONNX files: AOTInductor packages, TensorRT's commands."""

import shlex
import shutil
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from model_parts import IMAGE_SIZE, make_batch, make_model

from bevstack.datasets.encode import Encoder
from bevstack.perception.export import aoti, tensorrt
from bevstack.perception.export.describe import sensor_spec
from bevstack.perception.export.example import example_frame
from bevstack.perception.export.untrained import HIGHEST, spread_peaks
from bevstack.perception.export.write import write_folder
from bevstack.perception.runtime import Runtime, read_manifest
from bevstack.perception.runtime.manifest import SensorSpec
from bevstack.perception.runtime.runtime import SensorPreparation

RANGE = (-12.8, -9.6, -3.0, 12.8, 9.6, 5.0)
SENSORS = SensorSpec("ego", RANGE, IMAGE_SIZE[::-1], (), 1, True, True, True)
FRAMES = [example_frame(SENSORS, num_cameras=n) for n in (1, 3)]


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    model = make_model()
    with torch.no_grad():
        model.train()(make_batch())
    folder = tmp_path_factory.mktemp("export")
    write_folder(model, SENSORS, folder)
    return model.eval(), folder


@pytest.mark.slow
def test_an_aoti_package_is_the_model(exported, tmp_path):
    """Loaded in another process, by the manifest alone."""
    model, folder = exported
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    differences = aoti.write_package(model, tmp_path, FRAMES)
    spec = read_manifest(tmp_path).package
    assert spec is not None
    assert differences.keys() == {tensor.name for tensor in spec.outputs}
    assert max(d.largest for d in differences.values()) < 1e-4
    arrays = {t.name: np.random.default_rng(0).random(t.shape, np.float32) for t in spec.inputs}
    np.savez(tmp_path / "in.npz", **arrays)
    code = """
import numpy, torch
given = numpy.load("in.npz")
run = torch._inductor.aoti_load_package("fusion_heads.pt2")
found = run(*(torch.from_numpy(given[name]) for name in given))
numpy.savez("out.npz", *(tensor.numpy() for tensor in found))
"""
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=True)
    found = np.load(tmp_path / "out.npz")
    with torch.no_grad():
        outputs = model.fuse(*(torch.from_numpy(array) for array in arrays.values()))
    for i, tensor in enumerate(spec.outputs):
        task, part = tensor.name.split(".")
        expected = getattr(outputs[task], part).numpy()
        assert found[f"arr_{i}"].shape == tensor.shape
        np.testing.assert_allclose(found[f"arr_{i}"], expected, rtol=1e-4, atol=1e-4)


def test_a_missing_compiler_is_named(exported, monkeypatch):
    monkeypatch.setenv("CXX", "/nowhere/g++")
    monkeypatch.setenv("PATH", "/nowhere")
    from torch._inductor import config, cpp_builder

    monkeypatch.setattr(config.cpp, "cxx", ("/nowhere/g++",))
    for function in ("get_cpp_compiler", "cpp_compiler_search"):  # they remember what they found
        if hasattr(getattr(cpp_builder, function), "cache_clear"):
            getattr(cpp_builder, function).cache_clear()
    model, folder = exported
    with pytest.raises(ValueError, match="compiler"):
        aoti.write_package(model, folder, FRAMES)


def test_the_trtexec_commands_give_every_changing_input_its_range(exported, tmp_path):
    _, folder = exported
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    manifest, shapes = read_manifest(tmp_path), tensorrt.profile(tmp_path, FRAMES)
    script = tensorrt.write_script(tmp_path, manifest, shapes, half=True)
    # Run with a trtexec that writes its arguments down.
    stand_in = tmp_path / "bin" / "trtexec"
    stand_in.parent.mkdir()
    stand_in.write_text('#!/bin/sh\nprintf "%s " "$@" >> "$LOG"; echo >> "$LOG"\n')
    stand_in.chmod(0o755)
    path = f"{stand_in.parent}:/usr/bin:/bin"
    subprocess.run([script], env={"PATH": path, "LOG": str(tmp_path / "log")}, check=True)
    commands = [shlex.split(line) for line in (tmp_path / "log").read_text().splitlines()]
    assert len(commands) == len(manifest.graphs)
    sensors = Runtime(tmp_path).sensors(FRAMES[1])
    for (name, graph), command in zip(manifest.graphs.items(), commands):
        options = dict(o.lstrip("-").split("=", 1) for o in command if "=" in o)
        assert "--fp16" in command
        assert options["onnx"] == graph.file
        assert options["saveEngine"] == f"{name}.engine"
        changing = {t.name: t for t in graph.inputs if not all(isinstance(n, int) for n in t.shape)}
        ranges = []
        for option in ("minShapes", "optShapes", "maxShapes"):
            given = (text.split(":") for text in options.get(option, "").split(",") if text)
            ranges.append({name: [int(n) for n in shape.split("x")] for name, shape in given})
            assert ranges[-1].keys() == changing.keys()
        for name, tensor in changing.items():
            for low, usual, high, edge in zip(*(r[name] for r in ranges), tensor.shape):
                assert low <= usual <= high
                assert (low < high) == isinstance(edge, str)
    assert shapes["camera"]["images"].usual[0] == len(sensors.images) == 3


class FakeTensorRT:
    """The part of TensorRT 10's Python interface that a build uses; notes what is called."""

    def __init__(self, readable=True, buildable=True):
        self.calls, self.readable, self.buildable = [], readable, buildable
        self.Logger = lambda severity: "logger"
        self.Logger.WARNING = "warning"
        self.BuilderFlag = SimpleNamespace(FP16="fp16")
        self.Builder = lambda logger: self
        self.OnnxParser = lambda network, logger: self
        self.num_errors = 2

    def __getattr__(self, name):
        def call(*arguments):
            self.calls.append((name, *arguments))
            return {
                "parse_from_file": self.readable,
                "get_error": f"reason {arguments}",
                "build_serialized_network": memoryview(b"plan") if self.buildable else None,
            }.get(name, self)

        return call


def test_engines_are_built_by_the_documented_calls(tmp_path, monkeypatch):
    """Of the sequence of calls only: TensorRT itself cannot be had here."""
    shapes = {"images": tensorrt.Shapes((1, 3, 4, 4), (6, 3, 4, 4), (24, 3, 4, 4))}
    fake = FakeTensorRT()
    monkeypatch.setitem(sys.modules, "tensorrt", fake)
    tensorrt.build_engine(tmp_path / "a.onnx", tmp_path / "a.engine", shapes, half=True)
    assert [call[0] for call in fake.calls] == [
        "create_network", "parse_from_file", "create_builder_config", "set_flag",
        "create_optimization_profile", "set_shape", "add_optimization_profile",
        "build_serialized_network",
    ]  # fmt: skip
    assert ("set_shape", "images", (1, 3, 4, 4), (6, 3, 4, 4), (24, 3, 4, 4)) in fake.calls
    assert (tmp_path / "a.engine").read_bytes() == b"plan"
    monkeypatch.setitem(sys.modules, "tensorrt", FakeTensorRT(readable=False))
    with pytest.raises(ValueError, match=r"a\.onnx: reason \(0,\); reason \(1,\)"):
        tensorrt.build_engine(tmp_path / "a.onnx", tmp_path / "b.engine", {}, half=False)
    monkeypatch.setitem(sys.modules, "tensorrt", FakeTensorRT(buildable=False))
    with pytest.raises(ValueError, match="cannot build"):
        tensorrt.build_engine(tmp_path / "a.onnx", tmp_path / "b.engine", {}, half=False)


def test_the_manifest_prepares_sensors_as_the_encoder_does():
    """Every option that evaluation's encoder has for the sensors reaches the runtime."""
    encoder = Encoder(RANGE, IMAGE_SIZE[::-1], num_sweeps=1, half_points=True)
    frame = example_frame(SENSORS)
    spec = sensor_spec(encoder, (), "ego")
    assert spec.half_points
    expected, found = encoder(frame), SensorPreparation(spec)(frame)
    assert np.array_equal(found.points, expected.points.numpy())
    assert np.array_equal(found.images, expected.images.numpy())
    assert np.array_equal(found.bev_from_image, expected.bev_from_image.numpy())
    assert not np.array_equal(found.points, SensorPreparation(SENSORS)(frame).points)


def test_an_untrained_models_peaks_are_told_apart():
    torch.manual_seed(0)
    model, batch = make_model().eval(), make_batch(size=1)
    norms = [m for m in model.modules() if isinstance(m, torch.nn.BatchNorm2d)]
    momenta = [norm.momentum for norm in norms]
    with torch.no_grad():
        prior = model(batch)["detection"].heatmap.mean()
        spread_peaks(model, batch)
        heatmap = model(batch)["detection"].heatmap[0]
    above = heatmap - heatmap.mean((1, 2), keepdim=True)
    assert above.max().item() == pytest.approx(HIGHEST, rel=1e-3)
    assert heatmap.mean().item() == pytest.approx(prior.item(), abs=0.5)
    best = heatmap.flatten().topk(100).values
    assert (best.diff() < 0).all()
    assert not any(module.training for module in model.modules())
    assert [norm.momentum for norm in norms] == momenta
