"""The unmodified nuscenes-devkit on a submission, for those who trust nothing else."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ...datasets.errors import DataError

INSTALL = "pip install 'bevstack[official]'"


def official_detection(
    root: Path | str, version: str, split: str, submission_path: Path | str, out: Path | str
) -> dict:
    """Run nuscenes-devkit's ``DetectionEval``.

    Args:
        root: the nuScenes folder.
        version: for instance ``v1.0-trainval``.
        split: name of the split that the submission is for.
        submission_path: see ``write_submission``.
        out: folder for the devkit's own files; made if missing.

    Returns:
        The content of its ``metrics_summary.json``.

    Raises:
        DataError: if the devkit is not installed, or refuses the submission.
    """
    _headless()
    try:
        from nuscenes import NuScenes
        from nuscenes.eval.common.config import config_factory
        from nuscenes.eval.detection.evaluate import DetectionEval
    except ImportError as error:
        raise _missing(error) from error
    config: Any = config_factory("detection_cvpr_2019")
    with _refusals(submission_path):
        evaluation = DetectionEval(
            NuScenes(version, str(root), verbose=False),
            config,
            str(submission_path),
            split,
            str(out),
            verbose=False,
        )
        return evaluation.main(plot_examples=0, render_curves=False)


def official_tracking(
    root: Path | str, version: str, split: str, submission_path: Path | str, out: Path | str
) -> dict:
    """Run nuscenes-devkit's ``TrackingEval``; arguments and errors as ``official_detection``.

    Slow: 1,400 s for 6,000 frames.
    """
    _headless()
    try:
        # It raises SkipTest, not ImportError, where these two are absent, as after a plain
        # installation of the devkit.
        import motmetrics  # noqa: F401
        import pandas  # noqa: F401
        from nuscenes.eval.common.config import config_factory
        from nuscenes.eval.tracking.evaluate import TrackingEval
    except ImportError as error:
        raise _missing(error) from error
    config: Any = config_factory("tracking_nips_2019")
    with _refusals(submission_path), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        evaluation = TrackingEval(
            config, str(submission_path), split, str(out), version, str(root), verbose=False
        )
        return evaluation.main(render_curves=False)


def _headless() -> None:
    # The devkit draws with pyplot when it is imported; on a server there is no display.
    os.environ.setdefault("MPLBACKEND", "Agg")


def _missing(error: ImportError) -> DataError:
    return DataError(
        f"the official evaluation needs nuscenes-devkit ({error}); install it: {INSTALL}"
    )


@contextmanager
def _refusals(submission_path: Path | str) -> Iterator[None]:
    """Say in a sentence what the devkit has against a file."""
    try:
        yield
    except AssertionError as error:
        raise DataError(f"nuscenes-devkit refuses {submission_path}: {error}") from error
    except Exception as error:
        # It finds out the type of the boxes from the first one, and raises a plain Exception.
        if "Invalid box type: None" in str(error):
            raise DataError(
                f"nuscenes-devkit cannot measure {submission_path}: it holds no box at all"
            ) from error
        raise
