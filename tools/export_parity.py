"""Measure exported models beside the trained one, and write what differs as a table.

    python tools/export_parity.py RUN_FOLDER EXPORT [EXPORT ...] [--root DIR]
        [--out docs/results/export_parity.md]

All are evaluated on the run's validation split (``bevstack evaluate``, with ``--runtime`` for the
exports, whose tracks are then those of the runtime); results stay in their folders.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from provenance import provenance

from bevstack.perception.commands.evaluate import evaluate
from bevstack.perception.runtime import read_manifest

METRICS = (  # name, keys in metrics.json
    ("mAP", "detection", "mAP"),
    ("NDS", "detection", "NDS"),
    ("map mIoU", "map", "mIoU"),
    ("occupancy mIoU", "occupancy", "mIoU"),
    ("occupancy RayIoU", "occupancy", "RayIoU"),
    ("AMOTA", "tracking", "AMOTA"),
    ("AMOTP", "tracking", "AMOTP"),
)


def measured(folder: Path) -> dict:
    """What an evaluation left in a folder."""
    return json.loads((folder / "evaluation" / "metrics.json").read_text())


def table(columns: dict[str, dict]) -> list[str]:
    """Rows of Markdown; the first column is what the others are held against."""
    lines = ["| metric | " + " | ".join(columns) + " | largest difference |"]
    lines.append("| --- |" + " ---: |" * (len(columns) + 1))
    for name, task, key in METRICS:
        values = [found.get(task, {}).get(key) for found in columns.values()]
        if any(not isinstance(value, int | float) for value in values):
            continue
        apart = max(abs(value - values[0]) for value in values)
        numbers = " | ".join(f"{value:.5f}" for value in values)
        lines.append(f"| {name} | {numbers} | {apart:.1e} |")
    return lines


def about_export(folder: Path) -> list[str]:
    """Size of an export, and which layers of an 8-bit one compute in float."""
    manifest = read_manifest(folder)
    sizes = {graph.file: graph.bytes for graph in manifest.graphs.values()}
    parts = ", ".join(f"{file} {size / 1e3:,.0f} KB" for file, size in sizes.items())
    lines = [
        f"- {folder.name} ({manifest.precision}): {sum(sizes.values()) / 1e3:,.0f} KB; {parts}"
    ]
    if manifest.quantization is not None:
        spec = manifest.quantization
        agreement = ", ".join(f"{task} {share}" for task, share in spec.agreement.items())
        lines.append(f"  - calibrated with {spec.frames} frames; agreement there: {agreement}")
        lines += [
            f"  - in float, of {graph}: " + ", ".join(f"`{layer}`" for layer in layers)
            for graph, layers in spec.float_layers.items()
            if layers
        ]
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("run_folder", type=Path)
    parser.add_argument("export", type=Path, nargs="+")
    parser.add_argument("--root", help="nuScenes folder; default: the one trained on")
    parser.add_argument("--out", type=Path, default=Path("docs/results/export_parity.md"))
    options = parser.parse_args()
    evaluate(options.run_folder, root=options.root)
    columns = {"PyTorch": measured(options.run_folder)}
    for folder in options.export:
        evaluate(options.run_folder, runtime=folder, root=options.root)
        name = f"{folder.name} ({read_manifest(folder).precision})"
        columns[name] = measured(folder)
    exports = " ".join(map(str, options.export))
    about = provenance(f"python tools/export_parity.py {options.run_folder} {exports}")
    frames = columns["PyTorch"]["frames"]["total"]
    lines = [
        "# Exported models against PyTorch: official metrics",
        "",
        f"`{about['command']}`, commit {about['commit']}, {about['date']}, {about['machine']}.",
        "",
        f"{frames} frames of the validation split. PyTorch's boxes are tracked by the default "
        "tracker, those of the exports by the runtime.",
        "",
        *table(columns),
        "",
        *(line for folder in options.export for line in about_export(folder)),
    ]
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text("\n".join(lines) + "\n", encoding="utf-8")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
