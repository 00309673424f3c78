"""``bevstack view``: pictures of frames."""

from __future__ import annotations

from pathlib import Path

from ...kernels.grid import BEVGrid


def view(
    root: Path,
    version: str = "v1.0-trainval",
    split: str | None = None,
    out: Path = Path("pictures"),
    predictions: Path | None = None,
    frames: list[int] | None = None,
    num_frames: int = 10,
    reach: float = 50.0,
    width: int = 1600,
    min_score: float = 0.25,
    index_dir: Path | None = None,
) -> None:
    """Draw frames: all cameras with boxes, the scene from above, the map where there is one.

    Args:
        root: an indexed nuScenes folder.
        version: its tables' folder.
        split: draw frames of this split; default: of all.
        out: folder for the pictures.
        predictions: a submission JSON of exactly this split, to draw with the truth.
        frames: which frames, by their number; default: ``num_frames`` spread over the split.
        num_frames: how many, if ``frames`` is not given.
        reach: metres to draw around the vehicle.
        width: of the pictures, pixels.
        min_score: predictions with a lower score are left out.
        index_dir: folder of the index, if not beside the tables.
    """
    import numpy as np

    from ...datasets.geometry import inverse
    from ...datasets.nuscenes.maps import MapRasterizer
    from ...datasets.nuscenes.reader import NuScenesReader
    from ..evaluation.submission import read_submission
    from ..visualize.overview import draw_overview, save_image
    from ..visualize.submission import detections_of
    from .progress import progress_bar

    reader = NuScenesReader(root, version, split, previous_sweeps=0, index_dir=index_dir)
    found = read_submission(predictions, reader.tokens) if predictions else None
    grid = BEVGrid((-reach, reach), (-reach, reach), reach / 250)
    maps = MapRasterizer(root) if MapRasterizer.is_available(root) else None
    spread = np.unique(np.linspace(0, len(reader) - 1, num_frames).round().astype(int))
    chosen = frames if frames is not None else spread.tolist()
    with progress_bar("view", "frames") as advance:
        for done, i in enumerate(chosen, 1):
            if not 0 <= i < len(reader):
                raise ValueError(f"frame {i} does not exist; there are {len(reader)}")
            frame = reader[i]
            masks = None
            if maps is not None:
                pose = frame.global_from_ego @ inverse(frame.bev_from_ego)
                masks = maps.masks(frame.location, pose, grid)
            boxes = detections_of(found, i, frame) if found is not None else None
            picture = draw_overview(
                frame, boxes, None, masks, grid=grid, map_grid=grid, width=width,
                min_score=min_score,
            )  # fmt: skip
            save_image(Path(out) / f"{i:05d}_{frame.token}.jpg", picture)
            advance(done, len(chosen))
    print(f"{len(chosen)} pictures in {out}")
