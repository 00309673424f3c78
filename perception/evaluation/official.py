"""The unmodified nuscenes-devkit on a submission, for those who trust nothing else."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from ...datasets.errors import DataError

INSTALL = 'pip install "nuscenes-devkit==1.2.0"'


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
    # The devkit draws with pyplot when it is imported; on a server there is no display.
    os.environ.setdefault("MPLBACKEND", "Agg")
    try:
        from nuscenes import NuScenes
        from nuscenes.eval.common.config import config_factory
        from nuscenes.eval.detection.evaluate import DetectionEval
    except ImportError as error:
        raise DataError(
            f"the official evaluation needs nuscenes-devkit ({error}); install it: {INSTALL}"
        ) from error
    config: Any = config_factory("detection_cvpr_2019")
    try:
        evaluation = DetectionEval(
            NuScenes(version, str(root), verbose=False),
            config,
            str(submission_path),
            split,
            str(out),
            verbose=False,
        )
        return evaluation.main(plot_examples=0, render_curves=False)
    except AssertionError as error:
        raise DataError(f"nuscenes-devkit refuses {submission_path}: {error}") from error
    except Exception as error:
        # It finds out the type of the boxes from the first one, and raises a plain Exception.
        if "Invalid box type: None" in str(error):
            raise DataError(
                f"nuscenes-devkit cannot measure {submission_path}: it holds no box at all"
            ) from error
        raise
