"""Missing sensors are legal input: the model runs on whatever is left of a frame."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from model_parts import GRID, make_model

from bevstack.datasets.batch import collate
from bevstack.datasets.boxes import Detections
from bevstack.datasets.camera_models import Pinhole
from bevstack.datasets.corruptions.sensor_loss import LoseSensors
from bevstack.datasets.encode import Encoder
from bevstack.datasets.frame import Camera, Frame, LidarSweep

CHANNELS = ("CAM_FRONT", "CAM_FRONT_RIGHT", "CAM_BACK_RIGHT", "CAM_BACK", "CAM_BACK_LEFT",
            "CAM_FRONT_LEFT")  # fmt: skip
ENCODER = Encoder((-12.8, -9.6, -3.0, 12.8, 9.6, 5.0), image_size=(96, 48), num_sweeps=2)
BLACK, ABSENT, FROZEN = "black", "absent", "frozen"


def pixels(camera: int, time: int):
    def load(reduction: int = 1) -> np.ndarray:
        return np.random.default_rng([camera, time]).integers(0, 256, (48, 96, 3), np.uint8)

    return load


def cloud(seed: int, count: int = 300):
    low, high = [-12, -9, -2, 0, 0], [12, 9, 3, 255, 31]
    return lambda: np.random.default_rng(seed).uniform(low, high, (count, 5)).astype(np.float32)


def moment(time: int = 1) -> Frame:
    """Six cameras around the vehicle and two sweeps, all seen at one place."""
    intrinsic = np.array([[77, 0, 47.5], [0, 77, 23.5], [0, 0, 1.0]])
    cameras = []
    for n, name in enumerate(CHANNELS):
        c, s = np.cos(-n * np.pi / 3), np.sin(-n * np.pi / 3)
        mounting = np.eye(4)
        mounting[:3, :3] = np.array([[c, -s, 0], [s, c, 0], [0, 0, 1]]) @ np.array(
            [[0, 0, 1], [-1, 0, 0], [0, -1, 0]]
        )
        mounting[2, 3] = 1.5
        model = Pinhole(intrinsic, 96, 48)
        cameras.append(Camera(name, pixels(n, time), model, mounting, np.eye(4), 0))
    sweeps = tuple(LidarSweep(cloud(10 * time + k), np.eye(4), np.eye(4), -k) for k in range(2))
    return Frame(f"token{time}", "scene", "nowhere", 0, np.eye(4), tuple(cameras), sweeps, None)


@pytest.fixture(scope="module")
def model():
    return make_model().eval()


def run(model, *frames: Frame) -> list[Detections]:
    """Detections of a batch of frames; the map's probabilities are checked on the way."""
    batch = collate([ENCODER(frame) for frame in frames])
    with torch.inference_mode():
        decoded = model.decode(model(batch), batch)
    assert decoded["map"].shape[0] == len(frames)
    assert torch.isfinite(decoded["map"]).all()
    for found in decoded["detection"]:
        assert np.isfinite(found.score).all()
        assert np.isfinite(found.boxes.center).all()
        assert (np.abs(found.boxes.center[:, 0]) <= GRID.x_range[1] + 1).all()
    return decoded["detection"]


def without(frame: Frame, names: tuple[str, ...], how: str) -> Frame:
    if how == FROZEN:
        old = {camera.name: camera for camera in moment(time=0).cameras}
        kept = (replace(c, load=old[c.name].load) if c.name in names else c for c in frame.cameras)
        return replace(frame, cameras=tuple(kept))
    return LoseSensors(names, absent=how == ABSENT)(frame, 0)


@pytest.mark.parametrize("how", [BLACK, ABSENT, FROZEN])
@pytest.mark.parametrize("count", range(1, 7))
def test_any_number_of_cameras_may_be_missing(model, how, count):
    frame = without(moment(), CHANNELS[:count], how)
    assert len(frame.cameras) == (6 - count if how == ABSENT else 6)
    run(model, frame)


@pytest.mark.parametrize("name", CHANNELS)
def test_each_camera_may_be_lost(model, name):
    run(model, without(moment(), (name,), ABSENT))


def test_no_lidar_return_is_the_same_as_no_lidar(model):
    frame = moment()
    silent = replace(frame, sweeps=tuple(replace(s, load=cloud(0, 0)) for s in frame.sweeps))
    absent = LoseSensors(lidar=True)(frame, 0)
    ((first,), (second,)) = run(model, silent), run(model, absent)
    np.testing.assert_array_equal(first.score, second.score)
    np.testing.assert_array_equal(first.boxes.center, second.boxes.center)


@pytest.mark.parametrize("how", [BLACK, ABSENT, FROZEN])
def test_cameras_and_lidar_may_be_missing_together(model, how):
    run(model, without(LoseSensors(lidar=True)(moment(), 0), CHANNELS, how))


def test_a_broken_frame_does_not_touch_the_others_of_its_batch(model):
    whole, other = moment(1), moment(2)
    broken = LoseSensors(CHANNELS, lidar=True, absent=True)(moment(3), 0)
    (alone,) = run(model, whole)
    together = run(model, whole, broken, other)
    assert len(alone) == len(together[0])
    np.testing.assert_allclose(alone.score, together[0].score, atol=1e-5)


@pytest.mark.parametrize(("camera", "lidar"), [(True, False), (False, True)])
def test_a_model_of_one_sensor_runs_without_it(camera, lidar):
    run(make_model(camera, lidar).eval(), LoseSensors(CHANNELS, True, True)(moment(), 0))
