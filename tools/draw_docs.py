"""Draw the README's picture: six cameras and the view from above, of the synthetic world.

    python tools/draw_docs.py                            # makes a small world, draws the truth
    python tools/draw_docs.py --root runs/demo/world --predictions runs/demo/.../submission.json

Only synthetic data may go into the project: its licence is ours.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import numpy as np

from bevstack.datasets.nuscenes.classes import DETECTION_CLASSES
from bevstack.datasets.nuscenes.index import build_index
from bevstack.datasets.nuscenes.maps import MapRasterizer
from bevstack.datasets.nuscenes.reader import NuScenesReader
from bevstack.kernels.grid import BEVGrid
from bevstack.perception.evaluation.submission import read_submission
from bevstack.perception.visualize.overview import draw_overview, encode_image
from bevstack.perception.visualize.submission import detections_of

VIEW = BEVGrid((-25.0, 45.0), (-40.0, 40.0), 0.2)  # a bit wider than long: less to scroll past


def synthesize_small(root: Path, seed: int, image_size: tuple[int, int]) -> None:
    """Two scenes, enough to choose a frame from."""
    from bevstack.datasets.synthetic.write import synthesize

    synthesize(root, scenes=2, frames=6, seed=seed, image_size=image_size, camera_sweeps=False)


def liveliest(reader: NuScenesReader) -> int:
    """The frame with most to see: classes count more than boxes."""
    counts = reader.class_counts()
    return int(np.argmax(3 * (counts > 0).sum(1) + np.minimum(counts, 4).sum(1)))


def compress(image: np.ndarray, max_bytes: int) -> bytes:
    """The best JPEG that is small enough."""
    for quality in range(92, 20, -4):
        data = encode_image(image, ".jpg", quality)
        if len(data) <= max_bytes:
            return data
    raise ValueError(f"no quality gives a file below {max_bytes} bytes; use a smaller --width")


def draw(options: argparse.Namespace, root: Path) -> np.ndarray:
    """The picture of the frame that was asked for."""
    build_index(root, options.version)
    reader = NuScenesReader(root, options.version, options.split)
    i = liveliest(reader) if options.frame is None else options.frame
    frame = reader[i]
    found = None
    if options.predictions:
        found = detections_of(read_submission(options.predictions, reader.tokens), i, frame)
    masks = None
    if MapRasterizer.is_available(root):
        global_from_bev = frame.global_from_ego @ np.linalg.inv(frame.bev_from_ego)
        masks = MapRasterizer(root).masks(frame.location, global_from_bev, VIEW)
    seen = [DETECTION_CLASSES[k] for k in np.flatnonzero(reader.class_counts()[i])]
    print(f"frame {i} of {len(reader)}, {frame.scene}: {', '.join(seen)}")
    title = f"bevstack · synthetic world · {frame.scene}"
    return draw_overview(
        frame, found, None, masks, grid=VIEW, map_grid=VIEW, width=options.width,
        min_score=options.min_score, title=title,
    )  # fmt: skip


def main() -> None:
    """Read the options, draw, write."""
    parser = argparse.ArgumentParser(description="Draw the README's picture.")
    parser.add_argument("--root", type=Path, help="a synthetic dataset; none: a new one")
    parser.add_argument("--version", default="v1.0-mini")
    parser.add_argument("--split", default="mini_val")
    parser.add_argument("--frame", type=int, help="index in the split; none: the liveliest")
    parser.add_argument("--predictions", type=Path, help="a submission JSON; none: the truth")
    parser.add_argument("--min_score", type=float, default=0.25)
    parser.add_argument("--seed", type=int, default=0, help="of a new dataset")
    parser.add_argument("--width", type=int, default=1600)
    parser.add_argument("--max_kb", type=int, default=400)
    parser.add_argument("--out", type=Path, default=Path("docs/overview.jpg"))
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        root = options.root or Path(scratch)
        if options.root is None:
            synthesize_small(root, options.seed, image_size=(1600, 900))
        data = compress(draw(options, root), options.max_kb * 1000)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_bytes(data)
    print(f"{options.out}: {len(data) / 1000:.0f} kB")


if __name__ == "__main__":
    main()
