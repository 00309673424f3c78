"""Corrupted folders: what other code reads is what bevstack corrupts while loading."""

import json
import shutil

import numpy as np
import pytest

from bevstack.datasets.corruptions import suite_of
from bevstack.datasets.corruptions.folder import check_folder, write_folder
from bevstack.datasets.corruptions.folder.tables import Placement, rewrite_tables
from bevstack.datasets.errors import DataError
from bevstack.datasets.geometry import quaternion_from_yaw, transform
from bevstack.datasets.nuscenes.index import build_index
from bevstack.datasets.nuscenes.reader import NuScenesReader
from bevstack.datasets.seeding import epoch_seed
from bevstack.perception.cli import main

ARGUMENTS = ("multicorrupt", "pointsreducing", 2, "v1.0-mini")


@pytest.fixture(scope="module")
def folder(synthetic_root, tmp_path_factory):
    out = tmp_path_factory.mktemp("corrupted") / "out"
    return out, write_folder(synthetic_root, out, *ARGUMENTS)


def open_reader(root, tmp_path):
    build_index(root, "v1.0-mini", index_dir=tmp_path)
    return NuScenesReader(root, "v1.0-mini", index_dir=tmp_path)


def test_key_sweeps_are_those_corrupted_while_loading(synthetic_root, folder, tmp_path):
    clean = open_reader(synthetic_root, tmp_path / "clean")
    written = open_reader(folder[0], tmp_path / "written")
    step = suite_of("multicorrupt")["pointsreducing"].at(2)
    assert written.tokens == clean.tokens
    for i in range(len(clean)):
        frame = step(clean[i], epoch_seed(0, 0))
        assert np.array_equal(written[i].sweeps[0].load(), frame.sweeps[0].load())
        # So are the sweeps of the interval before it.
        assert np.array_equal(written[i].sweeps[3].load(), frame.sweeps[3].load())


def test_every_sweep_is_corrupted_once_and_the_rest_are_links(synthetic_root, folder):
    out, guard = folder
    sweeps = sorted((synthetic_root / "sweeps" / "LIDAR_TOP").iterdir())
    keys = sorted((synthetic_root / "samples" / "LIDAR_TOP").iterdir())
    assert len(guard.files) == len(sweeps) + len(keys)
    assert guard.unindexed == 0
    assert (guard.frames, guard.complete) == (len(keys), True)
    assert (out / "samples" / "CAM_FRONT").is_symlink()
    assert (out / "maps").is_symlink()
    assert not (out / "lidarseg").exists()
    assert "lidarseg" in guard.left_out
    assert check_folder(synthetic_root, out) == guard


def test_devkit_loads_the_folder(folder):
    nuscenes = pytest.importorskip("nuscenes")
    data = nuscenes.NuScenes("v1.0-mini", str(folder[0]), verbose=False)
    assert len(data.sample) == folder[1].frames


def test_interrupted_run_goes_on_to_the_same_folder(synthetic_root, folder, tmp_path):
    def stop(done, total):
        if done == 3:
            raise KeyboardInterrupt

    out = tmp_path / "out"
    with pytest.raises(KeyboardInterrupt):
        write_folder(synthetic_root, out, *ARGUMENTS, progress=stop)
    with pytest.raises(DataError, match="unfinished"):
        check_folder(synthetic_root, out)
    assert write_folder(synthetic_root, out, *ARGUMENTS, processes=2) == folder[1]
    check_folder(synthetic_root, out)


def test_check_finds_what_is_clean_or_was_touched(synthetic_root, folder, tmp_path):
    out = tmp_path / "out"
    shutil.copytree(folder[0], out, symlinks=True)
    name = next(iter(folder[1].files))
    content = (out / name).read_bytes()
    (out / name).write_bytes(content[:-20])
    with pytest.raises(DataError, match=r"not what corruption\.json recorded"):
        check_folder(synthetic_root, out)
    (out / name).unlink()
    (out / name).symlink_to(synthetic_root / name)
    with pytest.raises(DataError, match="is a link"):
        check_folder(synthetic_root, out)
    (out / name).unlink()
    (out / name).write_bytes(content)
    check_folder(synthetic_root, out)
    guard = json.loads((out / "corruption.json").read_text())
    (out / "corruption.json").write_text(json.dumps(guard | {"files": {}}))
    with pytest.raises(DataError, match="is clean"):
        check_folder(synthetic_root, out)
    with pytest.raises(DataError, match="was not made by"):
        check_folder(synthetic_root, synthetic_root)


def test_folders_that_would_harm_the_clean_data_are_refused(synthetic_root, folder, tmp_path):
    for out in (synthetic_root, synthetic_root / "out", synthetic_root.parent):
        with pytest.raises(DataError, match="lie in one another"):
            write_folder(synthetic_root, out, *ARGUMENTS)
    with pytest.raises(DataError, match="holds another corruption"):
        write_folder(synthetic_root, folder[0], "multicorrupt", "beamsreducing", 2, "v1.0-mini")
    (tmp_path / "mine.txt").write_text("")
    with pytest.raises(DataError, match="is not empty"):
        write_folder(synthetic_root, tmp_path, *ARGUMENTS)
    with pytest.raises(ValueError, match="no severity 4"):
        write_folder(synthetic_root, tmp_path / "out", *ARGUMENTS[:2], 4, "v1.0-mini")


def test_changed_calibration_and_time_stand_in_the_tables(synthetic_root, tmp_path):
    clean = open_reader(synthetic_root, tmp_path / "clean")[1]
    sweep = clean.sweeps[0]
    drift = transform(quaternion_from_yaw(0.02), [0.1, 0.0, -0.05])
    file = sweep.load.path.relative_to(synthetic_root).as_posix()
    moved = Placement(
        file,
        sweep.ego_from_lidar @ drift,
        sweep.global_from_ego,
        np.zeros(0),
        sweep.timestamp_us + 1000,
    )
    out = tmp_path / "out"
    shutil.copytree(synthetic_root / "v1.0-mini", out / "v1.0-mini")
    rewrite_tables(synthetic_root, "v1.0-mini", out, [moved])
    frame = open_reader(out, tmp_path / "changed")[1]
    assert np.allclose(frame.sweeps[0].ego_from_lidar, moved.ego_from_sensor, atol=1e-9)
    assert frame.sweeps[0].timestamp_us == moved.timestamp_us
    assert np.array_equal(frame.sweeps[1].ego_from_lidar, clean.sweeps[1].ego_from_lidar)
    assert np.array_equal(frame.cameras[0].ego_from_camera, clean.cameras[0].ego_from_camera)
    bent = Placement(file, drift * 1.01, sweep.global_from_ego, np.zeros(0), 0)
    with pytest.raises(ValueError, match="no rotation and translation"):
        rewrite_tables(synthetic_root, "v1.0-mini", out, [bent])


def test_command_writes_checks_and_lists(synthetic_root, tmp_path, capsys):
    root, out = str(synthetic_root), str(tmp_path / "out")
    options = ["--suite", "robo3d", "--name", "cross_sensor", "--version", "v1.0-mini"]
    main(["corrupt", root, out, *options, "--split", "mini_val"])
    assert "robo3d cross_sensor, severity 1, 4 frames" in capsys.readouterr().out
    main(["corrupt", root, out, "--check"])
    assert "all as recorded" in capsys.readouterr().out
    main(["corrupt", root, out, "--suite", "robo3d"])
    assert "cross_sensor" in capsys.readouterr().out
