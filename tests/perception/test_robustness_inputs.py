"""The guard: equal inputs are seen as equal, any change as a change, and how large it is."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from model_parts import make_batch

from bevstack.datasets.camera_models import Pinhole
from bevstack.datasets.frame import Camera, Frame, LidarSweep
from bevstack.perception.robustness.inputs import Seen, Watched, damage, input_digests

EYE = np.eye(4)


def frame_of(names=("CAM_FRONT", "CAM_BACK"), ego_from_camera=EYE, ego_from_lidar=EYE) -> Frame:
    model = Pinhole(np.eye(3), 96, 48)
    cameras = tuple(Camera(n, None, model, ego_from_camera, EYE, 0) for n in names)
    sweeps = (LidarSweep(None, ego_from_lidar, EYE, 0),)
    return Frame("sample0", "scene", "nowhere", 0, EYE, cameras, sweeps, None)


def one_sample(**changes):
    return replace(make_batch(size=1, cameras=2, points=50), **changes)


def test_a_digest_is_of_the_sample_alone():
    batch = make_batch(size=2, cameras=2, points=50)
    again = make_batch(size=2, cameras=2, points=50)
    assert input_digests(batch) == input_digests(again)
    alone = replace(
        batch, tokens=batch.tokens[:1], images=batch.images[:2],
        image_sample=batch.image_sample[:2], bev_from_image=batch.bev_from_image[:2],
        points=batch.points[:50], point_sample=batch.point_sample[:50],
    )  # fmt: skip
    assert input_digests(alone)["sample0"] == input_digests(batch)["sample0"]


@pytest.mark.parametrize("field", ["images", "points", "bev_from_image"])
def test_the_smallest_change_shows_in_its_sample_only(field):
    batch = make_batch(size=2, cameras=2, points=50)
    changed = getattr(batch, field).clone()
    changed.view(-1)[-1] += 1  # of the last sample
    before, after = input_digests(batch), input_digests(replace(batch, **{field: changed}))
    assert before["sample0"] == after["sample0"]
    assert before["sample1"] != after["sample1"]


def test_absent_and_black_images_differ():
    batch = one_sample()
    black = replace(batch, images=torch.zeros_like(batch.images))
    absent = replace(
        batch, images=batch.images[:0], image_sample=batch.image_sample[:0],
        bev_from_image=batch.bev_from_image[:0],
    )  # fmt: skip
    digests = {input_digests(b)["sample0"] for b in (batch, black, absent)}
    assert len(digests) == 3


def test_a_watched_loader_gives_what_it_was_given():
    items = [(make_batch(size=1), ()), (None, ("unreadable",))]
    watched = Watched(items)
    assert list(watched) == items
    assert list(watched.digests) == ["sample0"]


def test_nothing_changed_is_no_damage():
    seen = Seen(frame_of(), one_sample())
    found = damage([(seen, seen)])
    assert found.pixel_change == found.points_lost == found.points_altered == 0
    assert found.rotation_deg == found.shift_m == found.cameras_lost == 0
    assert found.psnr_db == np.inf
    assert found.to_json()["psnr_db"] is None


def test_damage_by_hand():
    batch = one_sample(images=torch.full((2, 3, 48, 96), 100, dtype=torch.uint8))
    brighter = batch.images.clone()
    brighter[0] += 20
    points = batch.points[:40].clone()
    points[:10, 3] = 7.5
    turned = EYE.copy()
    angle = np.radians(2.0)
    turned[:2, :2] = [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
    turned[:3, 3] = [0.3, 0.4, 0.0]
    changed = replace(batch, images=brighter, points=points, point_sample=batch.point_sample[:40])
    found = damage(
        [(Seen(frame_of(), batch), Seen(frame_of(ego_from_lidar=turned), changed))]
    )  # fmt: skip
    assert found.pixel_change == 10.0
    assert found.psnr_db == pytest.approx(10 * np.log10(255**2 / 200))
    assert found.points_lost == pytest.approx(0.2)
    assert found.points_altered == pytest.approx(0.4)
    assert found.rotation_deg == pytest.approx(2.0)
    assert found.shift_m == pytest.approx(0.5)


def test_lost_cameras_are_counted_black_or_absent():
    batch = one_sample()
    black = batch.images.clone()
    black[1] = 0
    clean = Seen(frame_of(), batch)
    dark = Seen(frame_of(), replace(batch, images=black))
    absent = Seen(
        frame_of(("CAM_BACK",)),
        replace(batch, images=batch.images[1:], image_sample=batch.image_sample[1:],
                bev_from_image=batch.bev_from_image[1:]),
    )  # fmt: skip
    for changed in (dark, absent):
        found = damage([(clean, changed)])
        assert found.cameras_lost == 0.5
        assert found.pixel_change == 0


def test_no_points_at_all_is_legal():
    batch = one_sample()
    empty = replace(batch, points=batch.points[:0], point_sample=batch.point_sample[:0])
    assert damage([(Seen(frame_of(), batch), Seen(frame_of(), empty))]).points_lost == 1
    assert damage([(Seen(frame_of(), empty), Seen(frame_of(), empty))]).to_json()[
        "points_lost"
    ] is None  # fmt: skip
