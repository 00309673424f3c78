"""Trails lie where the objects were, and videos hold what was drawn."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
from evaluation_tables import SPLIT, VERSION
from tracking_tables import Moving, TrackedWorld

from bevstack.datasets.frame import Frame
from bevstack.datasets.nuscenes.index import build_index
from bevstack.datasets.nuscenes.reader import NuScenesReader
from bevstack.kernels.grid import BEVGrid
from bevstack.perception import cli
from bevstack.perception.evaluation.tracking_submission import (
    is_tracking_submission,
    read_tracking_submission,
)
from bevstack.perception.tracking.scenes import timeline
from bevstack.perception.visualize.bev import BEVView, draw_bev
from bevstack.perception.visualize.trails import track_colour, trails_at
from bevstack.perception.visualize.video import save_video

GRID = BEVGrid((-20.0, 40.0), (-15.0, 15.0), 0.5)


@pytest.fixture
def tracked_world(tmp_path):
    places = [(305.0 + 5 * f, 704.0) for f in range(4)]
    world = TrackedWorld(
        tmp_path / "data",
        [[Moving("vehicle.car", places, [5] * 4)]],
        [[10**15 + 500_000 * f for f in range(4)]],
    )
    results = {world.token(s, f): [world.box(s, f, n)] for s, f, n in world.seen()}
    build_index(world.root, VERSION)
    return world, world.submit(results)


def with_clouds(world: TrackedWorld) -> None:
    """Put a few points behind every sample."""
    folder = world.root / "samples" / "LIDAR_TOP"
    folder.mkdir(parents=True)
    for token in world.tokens:
        np.ones((5, 5), np.float32).tofile(folder / f"{token}.pcd.bin")


def test_a_trail_is_drawn_where_the_object_was(tracked_world):
    world, path = tracked_world
    reader = NuScenesReader(world.root, VERSION, SPLIT)
    frame = reader[3]
    tracked = read_tracking_submission(path, reader.tokens)
    (trail,) = trails_at(tracked, timeline(reader), 3, frame)
    ego = np.array(world.ego(0, 3))
    expected = np.array([(305.0 + 5 * f, 704.0) for f in range(4)]) - ego
    np.testing.assert_allclose(trail.places[:, :2], expected, atol=1e-9)
    np.testing.assert_allclose(trail.places[:, 2], 1.0 - 0.75)  # the floor of the box
    assert (np.diff(trail.opacities) > 0).all()
    assert trails_at(tracked, timeline(reader), 3, frame, min_score=0.6) == ()
    plain, drawn = (draw_bev(grid=GRID, size_px=600, trails=t) for t in ((), (trail,)))
    rows, columns = np.nonzero((plain != drawn).any(-1))
    ends = BEVView(GRID, 600).pixels(expected[[0, -1]])
    assert abs(rows.max() - ends[0, 1]) < 4
    assert abs(rows.min() - ends[1, 1]) < 4
    assert abs(columns.mean() - ends[0, 0]) < 2


def test_tracks_that_follow_each_other_have_colours_far_apart():
    colours = np.array([track_colour(n) for n in range(6)], float)
    assert np.linalg.norm(colours[1:] - colours[:-1], axis=1).min() > 60


@pytest.mark.parametrize("suffix", [".mp4", ".webp"])
def test_a_video_holds_its_frames_in_order(tmp_path, suffix):
    pictures = [np.full((31, 47, 3), [200, 60 * k, 20], np.uint8) for k in range(4)]
    path = tmp_path / f"folder/video{suffix}"
    save_video(path, pictures, frames_per_second=4)
    if suffix == ".mp4":
        video = cv2.VideoCapture(str(path))
        found = [video.read()[1][..., ::-1] for _ in range(4)]
        assert not video.read()[0]
    else:
        from PIL import Image

        animation = Image.open(path)
        assert animation.n_frames == 4
        found = []
        for k in range(4):
            animation.seek(k)
            found.append(np.asarray(animation.convert("RGB")))
    middle = [frame[15, 23].astype(float) for frame in found]
    np.testing.assert_allclose(middle, [p[15, 23] for p in pictures], atol=12)
    assert not list(path.parent.glob("*partial*"))


def test_what_is_no_video_is_refused(tmp_path):
    with pytest.raises(ValueError, match="webp"):
        save_video(tmp_path / "a.gif", [np.zeros((4, 4, 3), np.uint8)])
    with pytest.raises(ValueError, match="one size"):
        save_video(tmp_path / "a.mp4", [])


def test_the_command_writes_a_video_of_a_scene_with_tracks(tracked_world, tmp_path, capsys):
    world, path = tracked_world
    assert is_tracking_submission(path)
    where = [str(world.root), "--version", VERSION, "--split", SPLIT, "--predictions", str(path)]
    with_clouds(world)
    video = tmp_path / "scene.webp"
    cli.main(["view", *where, "--width", "400", "--video", str(video)])
    assert "4 frames" in capsys.readouterr().out
    assert video.stat().st_size > 1000
    with pytest.raises(SystemExit):
        cli.main(["view", *where, "--video", str(video), "--scene", "scene-9"])
    assert "only: scene-0000" in capsys.readouterr().err


def test_rerun_gets_boxes_and_tracks_where_they_are_in_the_world(tracked_world, tmp_path, capsys):
    world, path = tracked_world
    with_clouds(world)
    where = [str(world.root), "--version", VERSION, "--split", SPLIT, "--predictions", str(path)]
    with pytest.raises(SystemExit):
        cli.main(["view", *where, "--rerun", str(tmp_path / "scene.txt")])
    assert "rerun" in capsys.readouterr().err
    rerun = pytest.importorskip("rerun")
    target = tmp_path / "scene.rrd"
    cli.main(["view", *where, "--rerun", str(target)])
    recording = rerun.dataframe.load_recording(target)
    view = recording.view(index="time", contents="world/ego/**")
    table = view.select().read_all().to_pandas()
    assert len(table) == 4

    def last(name):
        (column,) = (c for c in table.columns if name in c)
        return table[column].iloc[-1]

    ego = np.array(world.ego(0, 3)) - world.ego(0, 0)
    np.testing.assert_allclose(last("/world/ego:Translation3D")[0][:2], ego, atol=1e-3)
    box = last("/world/ego/prediction:PoseTranslation3D")[0]  # the box's, in the vehicle's frame
    np.testing.assert_allclose(box[:2], [320.0 - world.ego(0, 3)[0], 4.0], atol=1e-3)
    assert len(last("/world/ego/tracks:LineStrip3D")[0]) == 4


def test_rerun_gets_voxels_and_the_map_in_the_vehicles_frame(tmp_path):
    rerun = pytest.importorskip("rerun")
    from bevstack.datasets.nuscenes.classes import FREE, MAP_CLASSES
    from bevstack.kernels.voxel_grid import OCC3D_GRID
    from bevstack.perception.visualize.occupancy import Voxels
    from bevstack.perception.visualize.outputs import Outputs
    from bevstack.perception.visualize.rerun_log import RerunLog

    semantics = np.full(OCC3D_GRID.shape, FREE, np.uint8)
    semantics[150, 120, 4] = 4
    layers = np.zeros((len(MAP_CLASSES), *GRID.shape), np.float32)
    found = Outputs(map=layers, map_grid=GRID, voxels=Voxels(semantics, OCC3D_GRID))
    empty = Frame("k0", "scene-0", "nowhere", 10**15, np.eye(4), (), (), None)
    target = tmp_path / "frame.rrd"
    log = RerunLog(str(target))
    log.log(empty, found)
    log.close()
    recording = rerun.dataframe.load_recording(target)
    table = recording.view(index="time", contents="world/ego/**").select().read_all().to_pandas()

    def only(name):
        (column,) = (c for c in table.columns if name in c)
        return table[column].iloc[-1]

    (center,) = only("/world/ego/occupancy/prediction:PoseTranslation3D")
    np.testing.assert_allclose(center, [20.2, 8.2, 0.8], atol=1e-5)
    corners = np.stack(only("/world/ego/map/prediction:Position3D"))
    assert corners[:, :2].min(0).tolist() == [-20, -15]
    assert corners[:, :2].max(0).tolist() == [40, 15]
