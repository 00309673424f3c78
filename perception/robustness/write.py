"""The files of a finished benchmark."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

from ..visualize.overview import encode_image
from .cells import SENSORS
from .pictures import LOST, Strip, picture_name
from .results import Results
from .store import write_json, write_text
from .tables import all_tables, csv_text, latex_text, markdown_text

RESULTS = "results.json"
PICTURES = "pictures"


def write_results(out: Path, results: Results, baseline: Results | None) -> None:
    """Write ``results.json``, ``results.csv``, ``tables.md`` and ``tables.tex``."""
    tables = all_tables(results, baseline)
    write_json(out / RESULTS, results.to_json(baseline))
    write_text(out / "results.csv", csv_text(results))
    write_text(out / "tables.md", markdown_text(tables))
    write_text(out / "tables.tex", latex_text(tables))


def write_pictures(out: Path, strips: Iterable[Strip]) -> dict[tuple[str, str], bytes]:
    """Write each strip as a JPEG file under ``pictures``, and give them by suite and name."""
    folder = out / PICTURES
    folder.mkdir(parents=True, exist_ok=True)
    pictures = {}
    for strip in strips:
        name = picture_name(strip.group, strip.name)
        jpeg = encode_image(strip.image, ".jpg", 80)
        partial = folder / f"{name}.{os.getpid()}.partial"
        partial.write_bytes(jpeg)
        os.replace(partial, folder / name)
        pictures[strip.group, strip.name] = jpeg
    return pictures


def read_pictures(out: Path, results: Results) -> dict[tuple[str, str], bytes]:
    """The pictures that :func:`write_pictures` left, by suite and name, as far as there are any."""
    names = dict.fromkeys((row.group, row.name) for row in results.rows)
    strips = [(SENSORS, LOST), *(n for n in names if n[0] != SENSORS)]
    paths = {(g, n): out / PICTURES / picture_name(g, n) for g, n in strips}
    return {key: path.read_bytes() for key, path in paths.items() if path.exists()}
