"""``bevstack infer``: an exported model on a dataset. Needs no torch."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Literal

import numpy as np


def infer(
    root: Path,
    runtime: Path | None = None,
    version: str = "v1.0-trainval",
    split: str | None = None,
    out: Path = Path("runs/infer"),
    num_frames: int | None = None,
    arrays: bool = False,
    threads: int | None = None,
    providers: list[str] | None = None,
    on_error: Literal["raise", "skip"] = "raise",
    index_dir: Path | None = None,
) -> None:
    """Run an exported model; OUT gets ``submission.json``, ``tracks.json``, ``latency.json``.

    The frames of a scene are a stream; both JSON files of boxes are official submissions.

    Args:
        root: an indexed nuScenes folder.
        runtime: what ``bevstack export`` wrote.
        version: the tables' folder.
        split: frames of this split; default: all.
        out: folder for the results.
        num_frames: no more frames than this, the first.
        arrays: also write map probabilities (float16) and occupancy of every frame to
            OUT/arrays/TOKEN.npz.
        threads: cores to use; default: all.
        providers: ONNX Runtime's execution providers, best first; default: the CPU.
        on_error: ``raise`` stops at an unreadable frame; ``skip`` goes on and says how many.
        index_dir: where the index is, if not in its usual place.
    """
    from ...datasets.boxes import Boxes3D, Detections
    from ...datasets.errors import DataError
    from ...datasets.nuscenes.reader import NuScenesReader
    from ..evaluation.submission import submission_meta, write_submission
    from ..evaluation.tracking_submission import write_tracking_submission
    from ..runtime import Runtime, RuntimeOptions
    from ..runtime.latency import Latencies
    from ..tracking.scenes import tracks_in_global
    from .progress import progress_bar

    if runtime is None:
        raise ValueError("--runtime is missing; give a folder that `bevstack export` wrote")
    options = RuntimeOptions(tuple(providers or ("CPUExecutionProvider",)), threads)
    model, out = Runtime(runtime, options), Path(out)
    sensors = model.manifest.sensors
    reader = NuScenesReader(root, version, split, sensors.num_sweeps - 1, sensors.frame, index_dir)
    count = len(reader) if num_frames is None else min(num_frames, len(reader))
    if not count:
        raise ValueError(f"{root} {version} has no frame of split {split}; choose another")
    out.mkdir(parents=True, exist_ok=True)
    nothing = Detections(Boxes3D.empty(), np.zeros(0), np.zeros(0, np.int64))
    detections, transforms, skipped, latencies = [], [], {}, Latencies()
    tracks, state = {}, None  # tracks by place of the frame
    with progress_bar("infer", "frames") as advance:
        for i in range(count):
            try:
                found = model.run(reader[i], state)
            except DataError as error:
                if on_error == "raise":
                    raise
                skipped[reader.tokens[i]] = str(error)
                detections.append(nothing)
                transforms.append(np.eye(4))
                continue
            state = found.state
            detections.append(found.detections or nothing)
            if found.tracks is not None:
                tracks[i] = found.tracks
            transforms.append(found.global_from_bev)
            latencies.add(found.seconds)
            if arrays:
                _write_arrays(out / "arrays" / f"{reader.tokens[i]}.npz", found)
            advance(i + 1, count)
    tokens = list(reader.tokens[:count])
    if "detection" in model.manifest.heads:
        meta = submission_meta(model.manifest.camera is not None, model.manifest.lidar is not None)
        write_submission(out / "submission.json", tokens, detections, np.stack(transforms), meta)
        tracked = tracks_in_global([*tracks.values()], [*tracks], [transforms[i] for i in tracks])
        write_tracking_submission(out / "tracks.json", tokens, tracked, meta)
    (out / "latency.json").write_text(json.dumps(latencies.to_json(), indent=2) + "\n")
    latencies.print()
    for token, reason in list(skipped.items())[:1]:
        print(f"{len(skipped)} of {count} frames could not be read; the first is {token}: {reason}")
    print(f"results in {out}")


def _write_arrays(path: Path, found) -> None:
    arrays = {"global_from_bev": found.global_from_bev}
    if found.map is not None:
        arrays["map"] = found.map.astype(np.float16)
    if found.occupancy is not None:
        arrays["occupancy"] = found.occupancy.semantics
    path.parent.mkdir(parents=True, exist_ok=True)
    np.savez_compressed(path, **arrays)
