"""A killed training resumes and ends with the weights of one that was not."""

import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import torch

from bevstack.datasets.errors import DataError
from bevstack.perception.training.state_file import read_state

from training_parts import MadeUpData, Shift, StopAt, read_losses, run  # isort: skip

HERE = Path(__file__).parent

# 22 frames by 4 are 5 steps an epoch: checkpoints at steps 3, 6, 9 or 5, 10 or 2, 4, ...
CASES = {
    "mid-epoch": {"save_every": 3, "stop": 5},
    "mid-second-epoch": {"save_every": 3, "stop": 8},
    "at-epoch-end": {"save_every": 5, "stop": 7},
    "first-step-of-epoch": {"save_every": 6, "stop": 6},
    "accumulating": {"save_every": 2, "stop": 5, "accumulate": 2, "lr_batch": 8},
    "by-epochs": {"save_every": 3, "stop": 8, "epochs": 3, "max_steps": None},
    "validating": {"save_every": 5, "stop": 5, "epochs": 3, "max_steps": None, "validate_every": 1},
    "class-balanced-workers": {"save_every": 3, "stop": 8, "workers": 2, "class_balanced": True},
}


def assert_same_end(a: Path, b: Path) -> None:
    """Weights, average and optimizer of two runs are bit-equal, and so are their losses."""
    one, two = (read_state(folder / "last.safetensors") for folder in (a, b))
    for part in ("state_dict", "optimizer_states", "lr_schedulers", "global_step"):
        assert_equal(one[part], two[part], part)
    assert_equal(one["callbacks"]["EMA"], two["callbacks"]["EMA"], "EMA")
    assert read_losses(a) == read_losses(b)


def assert_equal(a, b, name: str) -> None:
    assert type(a) is type(b), name
    if isinstance(a, torch.Tensor):
        assert torch.equal(a, b), name
    elif isinstance(a, dict):
        assert a.keys() == b.keys(), name
        for key in a:
            assert_equal(a[key], b[key], f"{name}.{key}")
    elif isinstance(a, list | tuple):
        assert len(a) == len(b), name
        for i, (x, y) in enumerate(zip(a, b)):
            assert_equal(x, y, f"{name}.{i}")
    else:
        assert a == b, name


@pytest.mark.parametrize("case", CASES)
def test_interrupted_training_ends_like_an_uninterrupted_one(tmp_path, case):
    options = dict(CASES[case])
    stop = options.pop("stop")
    names = ("workers", "class_balanced")
    choices = {name: options.pop(name) for name in names if name in options}
    choices |= {"train_steps": [Shift()]}
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    run(whole, MadeUpData(**choices), **options)
    with pytest.raises(StopAt.Stopped):
        run(killed, MadeUpData(**choices), callbacks=[StopAt(stop)], **options)
    saved = read_state(killed / "last.safetensors")["global_step"]
    assert saved <= stop
    run(killed, MadeUpData(**choices), resume=killed / "last.safetensors", **options)
    assert_same_end(whole, killed)


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize("stops", [(5, 10), (5, 7), (2, 5, 6, 7, 10, 11)], ids=str)
@pytest.mark.parametrize(
    "length",
    [{}, {"max_steps": None, "epochs": 3}, {"max_steps": 12, "validate_every": 1}],
    ids=str,
)
def test_training_interrupted_again_and_again_ends_the_same(tmp_path, length, stops, workers):
    # Epochs end at steps 5 and 10: what Lightning itself counts is wrong from the second on.
    def go(folder, resume=None, callbacks=None):
        data = MadeUpData(train_steps=[Shift()], workers=workers)
        run(folder, data, resume=resume, callbacks=callbacks, save_every=1, **length)

    whole, killed, resume = tmp_path / "whole", tmp_path / "killed", None
    go(whole)
    for stop in stops:
        with pytest.raises(StopAt.Stopped):
            go(killed, resume, [StopAt(stop)])
        resume = killed / "last.safetensors"
    go(killed, resume)
    assert_same_end(whole, killed)


def test_worker_count_does_not_change_a_training(tmp_path):
    for workers in (0, 2):
        run(tmp_path / str(workers), MadeUpData(workers=workers, train_steps=[Shift()]))
    assert_same_end(tmp_path / "0", tmp_path / "2")


def test_resuming_a_finished_training_changes_nothing(tmp_path):
    model, result = run(tmp_path)
    again, _ = run(tmp_path, resume=result.last)
    assert torch.equal(model.first.weight, again.first.weight)
    assert len(read_losses(tmp_path)) == 12


def test_a_run_folder_is_not_overwritten(tmp_path):
    run(tmp_path, max_steps=1)
    with pytest.raises(DataError, match=r"already holds a training; go on with --resume"):
        run(tmp_path, max_steps=1)


def test_resuming_with_another_batch_size_is_refused(tmp_path):
    _, result = run(tmp_path, max_steps=3)
    with pytest.raises(DataError, match="took 4 samples at a time, this one takes 2"):
        run(tmp_path, MadeUpData(batch_size=2), resume=result.last)


@pytest.mark.slow
def test_sigkill_then_resume_ends_with_the_same_weights(tmp_path):
    script = tmp_path / "killed.py"
    script.write_text(
        textwrap.dedent(
            f"""
            import os, signal, sys
            sys.path.insert(0, {str(HERE)!r})
            import pytorch_lightning as pl
            from training_parts import MadeUpData, run

            class Kill(pl.Callback):
                def on_train_batch_start(self, trainer, module, batch, index):
                    if trainer.global_step == 8:
                        os.kill(os.getpid(), signal.SIGKILL)

            run({str(tmp_path / "killed")!r}, MadeUpData(workers=1), callbacks=[Kill()])
            """
        )
    )
    ended = subprocess.run(
        [sys.executable, str(script)], env={**os.environ, "OMP_NUM_THREADS": "1"}
    )
    assert ended.returncode == -signal.SIGKILL
    run(tmp_path / "killed", resume=tmp_path / "killed" / "last.safetensors")
    run(tmp_path / "whole")
    assert_same_end(tmp_path / "whole", tmp_path / "killed")
