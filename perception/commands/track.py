"""``bevstack track``: detections to tracks, official metrics."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Literal

from ...datasets.errors import DataError
from ..tracking.affinity import Affinities


def track(
    source: Path,
    tracker: Literal["kalman", "greedy"] = "kalman",
    settings: Path | None = None,
    affinity: bool | None = None,
    root: Path | None = None,
    version: str | None = None,
    split: str | None = None,
    index_dir: Path | None = None,
    out: Path | None = None,
    official: bool = False,
) -> None:
    """Track detections scene by scene; write a tracking submission and, if annotated, its metrics.

    Args:
        source: a detection submission JSON, or a run folder after ``bevstack evaluate``.
        tracker: ``kalman``, a filter per object and association in two stages; or ``greedy``, the
            nearest track by detected velocity (CenterPoint), as a baseline.
        settings: YAML file of values of the tracker that should be others.
        affinity: let the model's learned affinities help to link, which ``bevstack evaluate`` left
            beside the submission of a model with an affinity head; default: where there are some
            and the tracker is ``kalman``.
        root: an indexed nuScenes folder; default: that of the run.
        version: its tables' folder; default: that of the run.
        split: the split that was detected; default: the validation split of the run.
        index_dir: folder of the index, if not beside the tables.
        out: folder for the results; default: ``tracking_kalman`` or ``tracking_greedy`` beside the
            submission.
        official: also run the unmodified nuscenes-devkit (slow), and compare.
    """
    from rich.console import Console

    from ...datasets.nuscenes.reader import NuScenesReader
    from ..evaluation.ground_truth import tracking_truth
    from ..evaluation.submission import read_submission_and_meta
    from ..evaluation.tables import tracking_rows, tracking_tables, write_csv
    from ..evaluation.tracking import evaluate_tracks
    from ..evaluation.tracking_submission import write_tracking_submission
    from ..tracking.scenes import timeline, track_scenes
    from ..tracking.settings import make_tracker

    chosen = make_tracker(tracker, settings)
    given = {"root": root, "version": version, "split": split, "index_dir": index_dir}
    submission, data = _source(Path(source), {k: v for k, v in given.items() if v is not None})
    reader = NuScenesReader(**data, previous_sweeps=0)
    found, meta = read_submission_and_meta(submission, reader.tokens)
    linked = _affinities(submission, tracker, affinity)
    tracked = track_scenes(chosen, found, timeline(reader), linked)
    folder = Path(out) if out else submission.parent / f"tracking_{tracker}"
    path = folder / "tracks.json"
    write_tracking_submission(path, reader.tokens, tracked, meta)
    if reader.global_annotations(0) is None:
        print(f"{len(tracked)} tracked boxes in {path}; the split has no annotations to measure by")
        return
    metrics = evaluate_tracks(tracked, tracking_truth(reader))
    for table in tracking_tables(metrics):
        Console().print(table)
    content: dict[str, Any] = metrics.headline() | metrics.to_json()
    if official:
        content["official"] = _compare(metrics, data, path, folder)
    text = json.dumps(content, indent=2, allow_nan=False)
    (folder / "metrics.json").write_text(text + "\n", encoding="utf-8")
    write_csv(folder / "tracking.csv", *tracking_rows(metrics))
    print(f"results in {folder}")


def _affinities(submission: Path, tracker: str, wanted: bool | None) -> Affinities | None:
    """What a model said of the submission's boxes; None if it shall not count."""
    from ..evaluation.affinities import read_affinities
    from ..evaluation.evaluate import AFFINITIES

    path = submission.with_name(AFFINITIES)
    if wanted and tracker != "kalman":
        raise ValueError(f"the {tracker} tracker makes no use of affinities; leave --affinity out")
    if wanted and not path.is_file():
        raise DataError(
            f"there is no {path}; bevstack evaluate writes it for a model with an affinity head"
        )
    if wanted is False or tracker != "kalman" or not path.is_file():
        return None
    affinities = read_affinities(path, submission)
    print(f"with the learned affinities of {len(affinities.pairs)} pairs of frames")
    return affinities


def _source(source: Path, given: dict[str, Any]) -> tuple[Path, dict[str, Any]]:
    """The submission, and root, version, split and index folder of its data."""
    if not source.is_dir():
        missing = [f"--{name}" for name in ("root", "version", "split") if name not in given]
        if missing:
            raise DataError(f"{source} is a file; say where its data is: {', '.join(missing)}")
        return source, given
    import yaml

    from ..evaluation.evaluate import SUBMISSION

    config, submission = source / "config.yaml", source / "evaluation" / SUBMISSION
    for path, remedy in ((config, "train one first"), (submission, "run bevstack evaluate first")):
        if not path.is_file():
            raise DataError(f"{source} has no {path.relative_to(source)}; {remedy}")
    data = yaml.safe_load(config.read_text(encoding="utf-8"))["data"]
    run = {"root": data["root"], "version": data["version"], "split": data["val_split"]}
    return submission, run | {"index_dir": data.get("index_dir")} | given


def _compare(metrics: Any, data: dict[str, Any], path: Path, folder: Path) -> dict[str, Any]:
    """The devkit's main figures, printed beside the difference to ours."""
    import math

    from ..evaluation.official import official_tracking
    from ..evaluation.tracking import METRICS

    where = str(data["root"]), data["version"], data["split"]
    devkit = official_tracking(*where, path, folder / "official")
    pairs = [(metrics.overall(name), devkit[name]) for name in METRICS]
    pairs += [
        (value, devkit["label_metrics"][name][label])
        for name in METRICS
        for label, value in metrics.label_metrics[name].items()
    ]
    both = [(a, b) for a, b in pairs if not (math.isnan(a) and math.isnan(b))]
    difference = max((abs(a - b) for a, b in both), default=0.0)
    print(
        f"nuscenes-devkit: AMOTA {devkit['amota']:.4f}, AMOTP {devkit['amotp']:.3f} m; "
        f"largest difference to ours {difference:.1e}"
    )
    return {"AMOTA": devkit["amota"], "AMOTP": devkit["amotp"]}
