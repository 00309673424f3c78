"""Which scenes belong to which split: nuScenes' own lists, and a data set's ``splits.json``."""

from __future__ import annotations

import json
from pathlib import Path

from ..errors import DataError

# Scene numbers as nuScenes published them; 3-5 stands for scene-0003, scene-0004, scene-0005.
_SCENE_NUMBERS = {
    "train": (
        "1-2 4-11 19-34 41-76 120-135 138-139 149-152 154-155 157-168 170-185 187-188 190-196 "
        "199-200 202-204 206-214 218-220 222 224-264 283-306 315-318 321 323-324 328 347-386 "
        "388-403 405-408 410-459 461-465 467-469 471-472 474-480 499-502 504-515 517-518 525-539 "
        "541-546 566 568 570-578 580 582-600 639-679 681 683-689 695-698 700-701 703-719 726-728 "
        "730-731 733-741 744 746-747 749-752 757-765 767-769 786-787 789-792 803-806 808-813 "
        "815-817 819-822 847-856 858 860-866 868-873 875-878 880 882-903 945 947 949 952-953 "
        "955-961 975-984 988-992 994-1025 1044-1058 1074-1102 1104-1110"
    ),
    "val": (
        "3 12-18 35-36 38-39 92-110 221 268-278 329-332 344-346 519-524 552-565 625-627 629-630 "
        "632-638 770-771 775 777-778 780-784 794-800 802 904-917 919-931 962-963 966-969 971-972 "
        "1059-1073"
    ),
    "test": (
        "77-91 111-119 140 142-148 265-266 279-282 307-314 333-343 481-498 547-551 601-604 606-624 "
        "827-831 833-842 844-846 932-933 935-943 1026-1043"
    ),
    "train_detect": (
        "1-2 41-76 161-168 170-176 190-196 199-200 202-204 206-214 254-264 283-306 315-318 321 "
        "323-324 347-375 382 420-439 457-459 461-465 467-469 471-472 474-480 566 568 570-578 580 "
        "582-583 665-679 681 683-689 739-741 744 746-747 749-752 757-765 767-769 868-873 875-878 "
        "880 882-903 945 947 949 952-953 955-961 975-984 988-991 1011-1025 1074-1102 1104-1105"
    ),
    "mini_train": "61 553 655 757 796 1077 1094 1100",
    "mini_val": "103 916",
}
# The end of the version folder's name that holds a split's scenes; custom splits fit any.
_VERSION_OF_SPLIT = {
    "train": "trainval",
    "train_detect": "trainval",
    "train_track": "trainval",
    "val": "trainval",
    "test": "test",
    "mini_train": "mini",
    "mini_val": "mini",
}


def _scene_names(numbers: str) -> tuple[str, ...]:
    names = []
    for part in numbers.split():
        first, _, last = part.partition("-")
        names += [f"scene-{n:04d}" for n in range(int(first), int(last or first) + 1)]
    return tuple(names)


def _official_splits() -> dict[str, tuple[str, ...]]:
    splits = {split: _scene_names(numbers) for split, numbers in _SCENE_NUMBERS.items()}
    # The train set in two halves, so that a tracker can be trained on unseen detections.
    first_half = set(splits["train_detect"])
    splits["train_track"] = tuple(name for name in splits["train"] if name not in first_half)
    return splits


SPLITS: dict[str, tuple[str, ...]] = _official_splits()  # split -> names of its scenes


def splits_of_version(version: str) -> tuple[str, ...]:
    """Names of the official splits whose scenes are in a version such as ``v1.0-mini``."""
    return tuple(s for s, suffix in _VERSION_OF_SPLIT.items() if version.endswith(suffix))


def scenes_of_split(root: Path | str, version: str, split: str) -> tuple[str, ...]:
    """Scene names of an official split, or of one from ``<root>/<version>/splits.json``.

    The file maps names to lists of scene names, as the devkit reads it. An official name always
    means the official split.

    Raises:
        DataError: if there is no such split, or it is not one of this version.
    """
    path = Path(root) / version / "splits.json"
    official = splits_of_version(version)
    if split in official:
        return SPLITS[split]
    custom = {} if split in SPLITS else _read_custom(path)
    if split in custom:
        return custom[split]
    offered = ", ".join((*official, *custom)) or "none"
    if split in SPLITS:
        raise DataError(
            f"split {split} is not part of version {version}, which has: {offered}; choose one of "
            f"them, or a version folder whose name ends in '{_VERSION_OF_SPLIT[split]}'"
        )
    raise DataError(
        f"version {version} has no split '{split}', only: {offered}; choose one of them, or list "
        f"its scenes in {path}"
    )


def _read_custom(path: Path) -> dict[str, tuple[str, ...]]:
    if not path.is_file():
        return {}
    try:
        content = json.loads(path.read_text())
        return {str(name): tuple(map(str, scenes)) for name, scenes in content.items()}
    except (ValueError, AttributeError, TypeError) as error:
        raise DataError(
            f"{path} is not a JSON object of scene-name lists ({error}); write it as "
            '{"my_split": ["scene-0001"]}'
        ) from error
