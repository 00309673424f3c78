"""The tables at the end of an export."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console
from rich.table import Table

from ..model import FusionModel
from ..runtime.manifest import read_manifest
from .parity import Parity


def print_report(folder: Path, model: FusionModel, parity: Parity) -> None:
    """Sizes of the files, and how near the exported model is to the trained one."""
    console, manifest = Console(), read_manifest(folder)
    table = Table("output", "largest difference", "mean difference")
    table.title = f"{manifest.precision} in ONNX Runtime against PyTorch, {parity.frames} frames"
    for name, difference in parity.outputs.items():
        table.add_row(name, f"{difference.largest:.2e}", f"{difference.mean:.2e}")
    console.print(table)
    if parity.num_boxes:
        console.print(
            f"{parity.boxes_found} of {parity.num_boxes} boxes agree; their parameters differ by "
            f"at most {parity.box.largest:.1e}, {parity.box.mean:.1e} in the mean"
        )
    weights = sum(p.numel() * p.element_size() for p in model.parameters())
    table = Table("file", "KB", "of the float32 weights", "inputs", title="Sizes")
    total = 0
    for graph in manifest.graphs.values():
        total += graph.bytes
        share = f"{graph.bytes / weights:.0%}"
        table.add_row(graph.file, f"{graph.bytes / 1e3:,.0f}", share, str(len(graph.inputs)))
    table.add_row("all", f"{total / 1e3:,.0f}", f"{total / weights:.0%}", "")
    console.print(table)
