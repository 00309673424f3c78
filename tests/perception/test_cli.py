"""The command line as a user meets it."""

import importlib
import subprocess
import sys

import pytest

from bevstack.perception import cli


def test_every_verb_has_help(capsys):
    cli.main([])
    overview = capsys.readouterr().out
    for verb in cli.VERBS:
        assert verb in overview
        module = cli.MODULES.get(verb, verb)
        assert importlib.import_module(f"bevstack.perception.commands.{module}").__doc__


def test_an_unknown_verb_lists_the_known_ones():
    with pytest.raises(SystemExit, match=r"no verb 'trian'[\s\S]*evaluate"):
        cli.main(["trian"])


def test_a_users_mistake_is_one_sentence(capsys, tmp_path):
    with pytest.raises(SystemExit) as stop:
        cli.main(["index", str(tmp_path), "--version", "v1.0-mini"])
    message = capsys.readouterr().err
    assert stop.value.code == 2
    assert str(tmp_path) in message
    assert "Traceback" not in message


def test_doctor_names_torch_and_the_operations(capsys):
    cli.main(["doctor"])
    report = capsys.readouterr().out
    for word in ("torch", "bev_pool", "voxelize", "onnxruntime", "nuscenes-devkit"):
        assert word in report


def test_reading_data_imports_no_torch():
    code = (
        "import sys; import bevstack.kernels, bevstack.datasets.frame;"
        "import bevstack.datasets.nuscenes.reader, bevstack.perception.evaluation.detection;"
        "import bevstack.perception.cli;"
        "sys.exit(sorted({'torch', 'open3d', 'nuscenes', 'matplotlib'} & set(sys.modules)) or 0)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
