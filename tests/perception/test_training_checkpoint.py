"""Checkpoints as safetensors: exact, all or nothing, strict, and without code."""

import errno
import math
import os
import pickle

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import nn

from bevstack.datasets.errors import DataError
from bevstack.perception.training import state_file
from bevstack.perception.training.checkpoint import load_weights
from bevstack.perception.training.state_file import (
    CheckpointError,
    pack,
    read_state,
    unpack,
    write_state,
)

from training_parts import ToyModel, run  # isort: skip

SCALARS = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text()
TREES = st.recursive(
    SCALARS,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.tuples(inner, inner)
        | st.dictionaries(st.text() | st.integers(), inner, max_size=3)
    ),
    max_leaves=12,
)


@given(TREES)
def test_nested_values_come_back_exactly_with_their_types(tree):
    packed, tensors = pack(tree)
    back = unpack(packed, tensors.__getitem__)
    assert repr(back) == repr(tree)  # repr tells 1 from 1.0 and True, () from [], 0.0 from -0.0


def test_nan_and_infinity_come_back(tmp_path):
    write_state({"a": math.nan, "b": (math.inf, -math.inf)}, tmp_path / "x.safetensors")
    back = read_state(tmp_path / "x.safetensors")
    assert math.isnan(back["a"])
    assert back["b"] == (math.inf, -math.inf)


@pytest.mark.parametrize("dtype", state_file.DTYPE_NAMES, ids=str)
@pytest.mark.parametrize("shape", [(), (0, 3), (5,), (2, 3, 4)], ids=str)
def test_tensors_come_back_bit_for_bit(tmp_path, dtype, shape):
    tensor = torch.randn(shape).to(dtype)
    odd = torch.ones(3, dtype=torch.uint8)  # so that nothing is aligned by luck
    state = {"odd": odd, "x/y": {"z": tensor}, "x": {"y/z": tensor + 1}, "t": tensor.mT[..., :1]} \
        if tensor.ndim > 1 else {"odd": odd, "z": tensor}  # fmt: skip
    path = tmp_path / "x.safetensors"
    write_state(state, path)
    back = read_state(path)
    if tensor.ndim > 1:
        assert torch.equal(back["x/y"]["z"], tensor)
        assert torch.equal(back["x"]["y/z"], tensor + 1)  # same joined name, told apart
        assert torch.equal(back["t"], state["t"])  # not contiguous
    else:
        assert torch.equal(back["z"], tensor)
        assert back["z"].dtype == dtype
        assert back["z"].shape == tensor.shape
    assert len(load_file(path)) == len(state)  # the library itself reads it


def test_anything_else_is_refused_by_its_place():
    class Thing:
        pass

    with pytest.raises(CheckpointError, match=r"callbacks/mine/0 is a .*Thing"):
        pack({"callbacks": {"mine": [Thing()]}})
    with pytest.raises(CheckpointError, match="bytes"):
        pack({"state": b"123"})


@pytest.mark.parametrize("place", ["write", "fsync", "replace"])
def test_a_full_disk_keeps_the_previous_checkpoint_and_says_how_many_bytes(
    tmp_path, monkeypatch, place
):
    path = tmp_path / "last.safetensors"
    write_state({"weight": torch.zeros(1000)}, path)

    def no_space(*args):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    if place == "write":
        monkeypatch.setattr(state_file, "_bytes", no_space)
    else:
        monkeypatch.setattr(os, place, no_space)
    with pytest.raises(CheckpointError) as error:
        write_state({"weight": torch.ones(1000)}, path)
    monkeypatch.undo()
    message = str(error.value)
    size = len((path).read_bytes())
    assert str(path) in message
    assert "No space left on device" in message
    assert f"needs {size:,} bytes" in message
    assert "free that much" in message
    assert "previous checkpoint there is intact" in message
    assert os.listdir(tmp_path) == ["last.safetensors"]  # no partial file
    assert torch.equal(read_state(path)["weight"], torch.zeros(1000))


def test_loading_runs_no_code(tmp_path):
    class Evil:
        def __reduce__(self):
            return (os.system, ("touch " + str(tmp_path / "owned"),))

    path = tmp_path / "evil.safetensors"
    path.write_bytes(pickle.dumps(Evil()))
    with pytest.raises(CheckpointError, match=r"evil\.safetensors is damaged or not a safetensors"):
        read_state(path)
    assert not (tmp_path / "owned").exists()


def test_missing_and_truncated_files_are_named(tmp_path):
    with pytest.raises(CheckpointError, match=r"no checkpoint .*nothing"):
        read_state(tmp_path / "nothing.safetensors")
    path = tmp_path / "cut.safetensors"
    write_state({"weight": torch.zeros(1000)}, path)
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(DataError, match=r"cut\.safetensors is damaged"):
        read_state(path)


def test_peer_bug_15_a_checkpoint_of_another_config_is_refused(tmp_path):
    run(tmp_path, model=ToyModel(width=8), max_steps=1)
    other = ToyModel(width=6)
    other.extra = nn.Linear(2, 2)
    before = {n: t.clone() for n, t in other.state_dict().items()}
    with pytest.raises(CheckpointError) as error:
        load_weights(other, tmp_path / "last.safetensors")
    message = str(error.value)
    assert "not a checkpoint of this configuration (5 of 6 tensors differ)" in message
    assert "missing extra.weight" in message
    assert "first.weight is (8, 5), the model's is (6, 5)" in message
    assert all(torch.equal(before[n], t) for n, t in other.state_dict().items())
    assert len(load_weights(other, tmp_path / "last.safetensors", strict=False)) == 5


def test_load_weights_gives_the_average_or_the_last_step(tmp_path):
    trained, result = run(tmp_path)
    raw, average = ToyModel(), ToyModel()
    assert load_weights(raw, result.last, ema=False) == []
    assert load_weights(average, result.last) == []
    assert torch.equal(raw.first.weight, trained.first.weight)
    assert not torch.equal(average.first.weight, trained.first.weight)


def test_bare_weights_load_too(tmp_path):
    save_file(dict(ToyModel().state_dict()), tmp_path / "weights.safetensors")
    model = ToyModel()
    with torch.no_grad():
        model.first.weight.zero_()
    load_weights(model, tmp_path / "weights.safetensors")
    assert torch.equal(model.first.weight, ToyModel().first.weight)
