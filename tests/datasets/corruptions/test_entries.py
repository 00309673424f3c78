"""What every entry of every suite owes."""

import hashlib
import multiprocessing
from dataclasses import replace

import numpy as np
import pytest
from scenes import street_cloud, street_frame

from bevstack.datasets.corruptions import SUITES, Sequential, Touches
from bevstack.datasets.corruptions.measure import differs, frame_change

ENTRIES = [(suite, entry) for suite in SUITES.values() for entry in suite.entries]
IDS = [f"{suite.name}-{entry.name}" for suite, entry in ENTRIES]
TOKENS = [f"frame{i}" for i in range(8)]  # some entries toss a coin for every frame


def every_entry(test):
    return pytest.mark.parametrize("entry", [entry for _, entry in ENTRIES], ids=IDS)(test)


def digest(frame):
    """Everything a model could be given of a frame."""
    parts = hashlib.sha256()
    for sweep in frame.sweeps:
        for array in (sweep.load(), sweep.ego_from_lidar, sweep.global_from_ego):
            parts.update(np.ascontiguousarray(array).tobytes())
    for camera in frame.cameras:
        matrices = (camera.model.intrinsic, camera.ego_from_camera, camera.global_from_ego)
        for array in (camera.load(), *matrices):
            parts.update(np.ascontiguousarray(array).tobytes())
    return parts.hexdigest()


def digests(job):
    """Of all entries, mildest severity; runs in another process too."""
    seed, order = job
    made = {}
    for i in order:
        made[IDS[i]] = digest(ENTRIES[i][1].at(1)(street_frame(), seed))
    return made


@every_entry
def test_severity_zero_is_the_frame_itself(entry):
    frame = street_frame()
    assert entry.at(0)(frame, 3) is frame


@every_entry
def test_every_severity_changes_what_it_says_and_nothing_else(entry):
    for severity in range(1, entry.severities + 1):
        changed = False
        for token in TOKENS:
            clean = street_frame(token)
            frame = entry.at(severity)(clean, 0)
            assert frame.annotations is clean.annotations
            assert frame.token == token
            assert np.array_equal(frame.global_from_ego, clean.global_from_ego)
            changed |= differs(clean, frame)
            if Touches.CALIBRATION not in entry.touches:
                assert not differs(clean, replace_loads(frame, clean))
            if Touches.LIDAR not in entry.touches:
                assert all(a.load is b.load for a, b in zip(frame.sweeps, clean.sweeps))
            if Touches.CAMERA not in entry.touches:
                assert all(a.load is b.load for a, b in zip(frame.cameras, clean.cameras))
            if changed and severity > 1:
                break
        assert changed


def replace_loads(frame, clean):
    """The frame's calibration and times with the clean sensor data."""
    return replace(
        frame,
        sweeps=tuple(replace(a, load=b.load) for a, b in zip(frame.sweeps, clean.sweeps)),
        cameras=tuple(replace(a, load=b.load) for a, b in zip(frame.cameras, clean.cameras)),
    )


@every_entry
def test_format_is_that_of_the_reader(entry):
    clean = street_frame()
    for severity in (1, entry.severities):
        frame = entry.at(severity)(clean, 1)
        for sweep in frame.sweeps:
            points = sweep.load()
            assert points.dtype == np.float32
            assert points.shape == (len(points), 5)
            assert points.flags.c_contiguous
            assert np.isfinite(points).all()
            assert np.isin(points[:, 4], np.arange(32)).all()
            assert len(points) <= len(street_cloud())
        for camera, original in zip(frame.cameras, clean.cameras):
            image = camera.load()
            assert image.dtype == np.uint8
            assert image.shape == original.load().shape
            assert camera.load(2).shape == original.load(2).shape


@every_entry
def test_empty_cloud_and_missing_sensors_are_legal(entry):
    frame = street_frame()
    empty = np.zeros((0, 5), np.float32)
    bare = tuple(replace(s, load=lambda: empty) for s in frame.sweeps)
    bare = replace(frame, sweeps=bare, previous=None)
    for step in (entry.at(1), entry.at(entry.severities)):
        assert all(len(sweep.load()) == 0 for sweep in step(bare, 0).sweeps)
        nothing = step(replace(frame, sweeps=(), cameras=(), annotations=None), 0)
        assert (nothing.sweeps, nothing.cameras) == ((), ())
        unlabelled = step(replace(frame, annotations=None), 0)
        assert [sweep.load().shape[1] for sweep in unlabelled.sweeps] == [5, 5, 5]


@every_entry
def test_damage_rises_with_severity(entry):
    damage = np.zeros((entry.severities, 2))
    for token in TOKENS:
        clean = (
            six_cameras(street_frame(token)) if entry.name == "CameraCrash" else street_frame(token)
        )
        for severity in range(1, entry.severities + 1):
            change = frame_change(clean, entry.at(severity)(clean, 0))
            damage[severity - 1] += change.lidar_damage, change.camera_damage
    for part, column in ((Touches.LIDAR, 0), (Touches.CAMERA, 1)):
        if part in entry.touches:
            # Faces that are sheared by more than their texture's size differ no more by pixels.
            least = -0.03 * damage.max() if (entry.name, column) == ("shear", 1) else 0
            assert (np.diff(damage[:, column]) > least).all(), damage[:, column] / len(TOKENS)


def six_cameras(frame):
    """As many cameras as that benchmark counts on."""
    return replace(frame, cameras=tuple(replace(frame.cameras[0], name=f"{i}") for i in range(6)))


@every_entry
def test_loading_twice_gives_the_same_bytes_and_seeds_matter(entry):
    clean = street_frame()
    frame = entry.at(entry.severities)(clean, 5)
    assert digest(frame) == digest(frame)
    assert digest(frame) == digest(entry.at(entry.severities)(street_frame(), 5))


def test_bytes_do_not_depend_on_the_process_or_the_order():
    order = list(range(len(ENTRIES)))
    here = digests((7, order))
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        there = pool.map(digests, [(7, order[::-1])])[0]
    assert here == there
    assert here != digests((8, order))


def test_steps_of_a_combination_draw_independently():
    from bevstack.datasets.corruptions.lidar_drop import DropPoints

    clean = street_frame()
    twice = Sequential((DropPoints(0.5), DropPoints(0.5)))(clean, 0).sweeps[0].load()
    # The same draw twice would keep the first of the remaining points again and again.
    assert abs(len(twice) / len(clean.sweeps[0].load()) - 0.25) < 1e-3
    first = DropPoints(0.5)(clean, 0).sweeps[0].load()
    assert 0 < np.isin(twice.view("V20"), first.view("V20")).mean() < 1
