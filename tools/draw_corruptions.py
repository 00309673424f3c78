"""Contact sheets of the corruptions: one frame clean and at every severity, to be looked at.

    python tools/draw_corruptions.py                          # of a small synthetic world
    python tools/draw_corruptions.py --root DATA --version v1.0-mini --split mini_train \
        --suites multicorrupt --names fog snow

Writes SUITE_camera and SUITE_lidar to --out, a row for each corruption. Pictures of real data are
under the data's licence: keep them out of the project.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from bevstack.datasets.corruptions import SUITES, Entry, Suite, Touches
from bevstack.datasets.frame import Camera, Frame
from bevstack.datasets.nuscenes.index import build_index
from bevstack.datasets.nuscenes.reader import NuScenesReader
from bevstack.datasets.points import merge_sweeps
from bevstack.kernels.grid import BEVGrid
from bevstack.perception.visualize.bev import draw_bev
from bevstack.perception.visualize.cameras import draw_camera, in_order, tile
from bevstack.perception.visualize.canvas import Canvas
from bevstack.perception.visualize.overview import encode_image
from bevstack.perception.visualize.scene import truth_of
from bevstack.perception.visualize.style import DARK

MISPLACING = Touches.CALIBRATION | Touches.TIME


def camera_cell(frame: Frame, main: str, width: int, boxes: bool) -> NDArray[np.uint8]:
    """One camera large, all of them small below it."""
    truth = truth_of(frame) if boxes else None
    shown = [c for c in frame.cameras if c.name == main]
    gone = Canvas.blank(width, round(width * 9 / 16), DARK.surface).finish()
    large = draw_camera(frame, shown[0], None, truth, width=width) if shown else gone
    if not frame.cameras:
        return gone
    small = (width - 5 * 2) // 6
    others = [thumbnail(camera, small) for camera in in_order(frame.cameras)]
    strip = tile(others, 6, DARK.background, 2)
    return tile([large, strip[:, :width]], 1, DARK.background, 2)


def thumbnail(camera: Camera, width: int) -> NDArray[np.uint8]:
    """The image of that width."""
    size = (width, round(camera.model.height * width / camera.model.width))
    return np.asarray(cv2.resize(camera.load(), size, interpolation=cv2.INTER_AREA), np.uint8)


def lidar_cell(frame: Frame, grid: BEVGrid, size: int, sweeps: int) -> NDArray[np.uint8]:
    """The view from above, coloured by intensity, with the annotated boxes."""
    points = merge_sweeps(frame, sweeps) if frame.sweeps else None
    return draw_bev(points, None, truth_of(frame), grid=grid, size_px=size, colour_by="intensity")


def around(x: float, y: float, reach: float) -> BEVGrid:
    """The region about a point."""
    reach = float(np.ceil(reach))
    x, y = round(x), round(y)
    return BEVGrid((x - reach, x + reach), (y - reach, y + reach), 1.0)


def closeup(frame: Frame) -> BEVGrid:
    """The region about the object with most LiDAR points."""
    truth = frame.annotations
    if truth is None or not len(truth):
        raise ValueError(f"frame {frame.token} has no annotated object to draw a close-up of")
    best = int(np.argmax(truth.num_lidar_points))
    box = truth.boxes[np.array([best])].transformed(frame.bev_from_ego)
    return around(*box.center[0, :2], reach=0.5 * box.size.max() + 1.5)


def titled(image: NDArray[np.uint8], title: str) -> NDArray[np.uint8]:
    """The picture with a line of text above it."""
    canvas = Canvas.blank(image.shape[1], 22, DARK.background)
    canvas.text((4, 3), title, DARK.text, 13, bold=True)
    return np.concatenate([canvas.finish(), image])


def draw_sheet(suite: Suite, frame: Frame, kind: str, options: argparse.Namespace):
    """The sheet of a suite for one kind of sensor; None where it has no such corruption."""
    wanted = Touches.LIDAR if kind == "lidar" else Touches.CAMERA | Touches.CALIBRATION
    chosen = {name.lower() for name in options.names}
    entries = [
        entry
        for entry in suite.entries
        if entry.touches & wanted and (not chosen or entry.name.lower() in chosen)
    ]
    cells = [cell for entry in entries for cell in draw_row(entry, frame, kind, options)]
    if not cells:
        return None
    return tile(cells, 1 + max(e.severities for e in entries), DARK.background)


def draw_row(entry: Entry, frame: Frame, kind: str, options: argparse.Namespace):
    """The frame clean and at every severity."""
    grid = closeup(frame) if options.closeup else around(0.0, 0.0, options.reach)
    row = []
    for severity in range(entry.severities + 1):
        corrupted = entry.at(severity, options.as_published)(frame, options.seed)
        if kind == "lidar":
            cell = lidar_cell(corrupted, grid, options.width, options.sweeps)
        else:
            boxes = options.boxes or bool(entry.touches & MISPLACING)
            cell = camera_cell(corrupted, options.camera, options.width, boxes)
        row.append(titled(cell, f"{entry.name} {severity}" if severity else "clean"))
    return row


def main() -> None:
    """Read the options, draw, write."""
    parser = argparse.ArgumentParser(description="Draw contact sheets of the corruptions.")
    parser.add_argument("--root", type=Path, help="a dataset; none: a new synthetic one")
    parser.add_argument("--version", default="v1.0-mini")
    parser.add_argument("--split", default="mini_val")
    parser.add_argument("--frame", type=int, default=-1, help="index in the split")
    parser.add_argument("--suites", nargs="*", default=list(SUITES))
    parser.add_argument("--names", nargs="*", default=[], help="corruptions; none: all")
    parser.add_argument("--kinds", nargs="*", default=["camera", "lidar"])
    parser.add_argument("--camera", default="CAM_FRONT", help="the one that is drawn large")
    parser.add_argument("--boxes", action="store_true", help="annotated boxes in all images")
    parser.add_argument("--sweeps", type=int, default=1, help="LiDAR sweeps that are drawn")
    parser.add_argument("--reach", type=float, default=50.0, help="of the view from above, metres")
    parser.add_argument("--closeup", action="store_true", help="the best seen object from above")
    parser.add_argument("--as_published", action="store_true", help="with the benchmarks' flaws")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--width", type=int, default=420, help="of a picture, pixels")
    parser.add_argument("--format", default="jpg", choices=("jpg", "png"))
    parser.add_argument("--out", type=Path, default=Path("runs/corruptions"))
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        root = options.root or Path(scratch)
        if options.root is None:
            from bevstack.datasets.synthetic.write import synthesize

            synthesize(root, scenes=2, frames=4, seed=options.seed, image_size=(1600, 900))
        build_index(root, options.version, index_dir=Path(scratch))
        reader = NuScenesReader(root, options.version, options.split, index_dir=Path(scratch))
        frame = reader[options.frame % len(reader)]
        options.out.mkdir(parents=True, exist_ok=True)
        for name in options.suites:
            for kind in options.kinds:
                sheet = draw_sheet(SUITES[name], frame, kind, options)
                if sheet is not None:
                    path = options.out / f"{name}_{kind}.{options.format}"
                    path.write_bytes(encode_image(sheet, path.suffix, 88))
                    print(f"{path}: {sheet.shape[1]} x {sheet.shape[0]}")


if __name__ == "__main__":
    main()
