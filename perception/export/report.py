"""The tables at the end of an export."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from rich.console import Console
from rich.table import Table

from ..model import FusionModel
from ..runtime.manifest import read_manifest
from .parity import Difference, Parity


def print_report(folder: Path, model: FusionModel, parity: Parity) -> None:
    """Sizes of the files, and how near the exported model is to the trained one."""
    console, manifest = Console(), read_manifest(folder)
    title = f"{manifest.precision} in ONNX Runtime against PyTorch, {parity.frames} frames"
    print_differences(title, parity.outputs)
    if parity.num_boxes:
        console.print(
            f"{parity.boxes_found} of {parity.num_boxes} boxes agree; their parameters differ by "
            f"at most {parity.box.largest:.1e}, {parity.box.mean:.1e} in the mean"
        )
    if parity.map.count:
        console.print(
            f"probabilities of the map differ by at most {parity.map.largest:.1e}, "
            f"{parity.map.mean:.1e} in the mean"
        )
    if parity.affinity.count:
        console.print(
            f"probabilities of affinities differ by at most {parity.affinity.largest:.1e}, "
            f"{parity.affinity.mean:.1e} in the mean"
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
    if manifest.quantization is not None:
        for name, layers in manifest.quantization.float_layers.items():
            if layers:
                console.print(f"{name} computes in float: {', '.join(layers)}")


def print_differences(title: str, outputs: Mapping[str, Difference]) -> None:
    """How far outputs are from those that they should be."""
    table = Table("output", "largest difference", "mean difference", title=title)
    for name, difference in outputs.items():
        table.add_row(name, f"{difference.largest:.2e}", f"{difference.mean:.2e}")
    Console().print(table)
