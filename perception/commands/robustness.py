"""``bevstack robustness``: corruption suites, lost sensors and an attack, in one table."""

from __future__ import annotations

import hashlib
import os
import shlex
import sys
from pathlib import Path
from typing import Any, Literal

from .exports import with_run_folder


def main(options: list[str]) -> None:
    """Parse the options; an exported model alone brings the config of its run with it."""
    from jsonargparse import auto_cli

    auto_cli(robustness, args=with_run_folder(options), prog="bevstack robustness")


def robustness(
    run_folder: Path,
    runtime: Path | None = None,
    suites: list[str] | None = None,
    corruptions: list[str] | None = None,
    severities: list[int] | None = None,
    frames: int | None = None,
    attack: bool = False,
    attack_area: float = 0.05,
    attack_eps: float = 64.0,
    attack_steps: int = 10,
    as_published: bool = False,
    baseline: Path | None = None,
    out: Path | None = None,
    report: bool = True,
    shard: str | None = None,
    device: str | None = None,
    root: str | None = None,
    version: str | None = None,
    split: str | None = None,
    seed: int | None = None,
    workers: int | None = None,
    on_error: Literal["raise", "skip"] = "raise",
    trust: list[str] | None = None,
) -> None:
    """Measure a trained or exported model under corrupted, lost and attacked sensors.

    Every finished cell (a corruption at one severity) is a file in OUT/cells. A run that was
    killed goes on with the same command; several processes share the work: start the command as
    often as there are GPUs, by hand, by torchrun, or on machines without a common folder with
    --shard, and gather the cells in one folder. Whoever finishes last writes results.json,
    results.csv, tables.md, tables.tex, pictures and report.html.

    Args:
        run_folder: a folder that ``bevstack train`` or ``bevstack export`` wrote.
        runtime: measure this exported model, on the data of the run; results go to its folder.
        suites: multicorrupt, robobev, robo3d, nuscenes_c; default: multicorrupt.
        corruptions: names of the suites' entries to measure; default: all.
        severities: to measure, from 1; default: all that an entry has.
        frames: measure on so many frames, spread evenly over the split (nothing is tracked then);
            default: all.
        attack: also attack the camera images with an adversarial patch (a white-box bound).
        attack_area: share of every image that the patch covers.
        attack_eps: largest change of a pixel by the patch, of 255.
        attack_steps: of gradient ascent.
        as_published: with the benchmarks' known flaws, where an entry has them.
        baseline: results.json of the model to compare with (mCE, mRRA).
        out: where results go; default: the model's folder, /robustness.
        report: also draw pictures and write report.html.
        shard: i/n, this process measures the cells i, i + n, ...; default: RANK/WORLD_SIZE.
        device: default: cuda:LOCAL_RANK where there is a GPU, else cpu.
        root: nuScenes folder to measure on; default: the one trained on.
        version: its tables' folder.
        split: the split to measure on; default: the validation split of the run.
        seed: of the corruptions; default: the run's.
        workers: data-loading processes; default: the run's.
        on_error: ``raise`` stops at an unreadable frame; ``skip`` goes on and says how many.
        trust: further modules whose classes the run's config may name.
    """
    from ..evaluation.exported import ExportedModel
    from ..robustness.attack import PatchAttack
    from ..robustness.benchmark import Subject, measure_cell, run_cells, spread
    from ..robustness.cells import plan
    from ..robustness.results import Results, assemble
    from ..robustness.store import CellStore, run_digest
    from ..robustness.tables import all_tables, print_tables
    from ..robustness.write import write_results
    from .train import load_run

    if runtime is not None and attack:
        raise ValueError("an exported model has no gradient to attack with; leave --attack out")
    out = Path(runtime or run_folder) / "robustness" if out is None else Path(out)
    against = Results.read(baseline) if baseline else None
    given = {"seed": seed, "workers": workers}
    model, data, _ = load_run(
        run_folder, trust or (), root=root, version=version, val_split=split, on_error=on_error,
        **{k: str(v) for k, v in given.items() if v is not None},
    )  # fmt: skip
    where = _device(device if runtime is None else "cpu")
    model = ExportedModel(runtime) if runtime is not None else model.to(where)
    if data.val_split is None:
        raise ValueError(f"the run {run_folder} has no validation split; give --split")
    data.prepare_data()
    reader = data.reader(data.val_split)
    total = len(reader)
    if frames is not None:
        if frames < 1:
            raise ValueError(f"frames is {frames}; give at least 1, or leave it out for all")
        reader = reader.taking(spread(total, frames))
    first = reader[0]
    uses_lidar = model.lidar is not None and data.encoder.lidar
    uses_cameras = model.camera is not None and data.encoder.cameras
    cells = plan(
        ["multicorrupt"] if suites is None else suites,
        corruptions or (),
        severities or (),
        as_published,
        cameras=[camera.name for camera in first.cameras] if uses_cameras else (),
        lidar=uses_lidar,
        attack=PatchAttack(attack_area, attack_eps, attack_steps) if attack else None,
    )
    setup = {
        "model": run_digest(Path(runtime or run_folder)),
        "data": data.version,
        "split": data.val_split,
        "frames": f"{len(reader)} of {total}",
        "tokens": hashlib.blake2b("\n".join(reader.tokens).encode(), digest_size=8).hexdigest(),
        "seed": data.seed,
        "on_error": data.on_error,
    }
    store = CellStore(out / "cells", setup)
    subject = Subject(model, data, reader, where, len(reader) == total)
    print(f"{len(cells)} cells of {len(reader)} frames on {where}; results go to {out}", flush=True)
    missing = run_cells(cells, store, lambda cell: measure_cell(subject, cell), _shard(shard), _say)
    if missing:
        print(
            f"{len(missing)} cells are left to other processes ({missing[0].title}, ...); the "
            "last one to finish writes the tables"
        )
        return
    results = assemble(setup, [store.read(cell) for cell in cells])  # type: ignore[misc]
    write_results(out, results, against)
    print_tables(all_tables(results, against))
    if report:
        _write_report(out, subject, cells, results, against)
    print(f"results in {out}")
    _refuse(results)


def _write_report(out: Path, subject: Any, cells: Any, results: Any, against: Any) -> None:
    from ..report.of_robustness import write_robustness_report
    from ..robustness.pictures import draw_strips
    from ..robustness.write import write_pictures
    from .progress import progress_bar

    with progress_bar("draw", "pictures") as advance:
        pictures = write_pictures(out, draw_strips(subject, cells, advance))
    facts = {
        "Data": f"{subject.data.root}, split {subject.data.val_split}",
        "Frames": results.setup["frames"],
        "Model": results.setup["model"],
        "Seed": results.setup["seed"],
    }
    command = " ".join(["bevstack robustness", *map(shlex.quote, sys.argv[2:])])
    write_robustness_report(out / "report.html", results, against, pictures, facts, command)
    print(f"report in {out / 'report.html'}")


def _refuse(results: Any) -> None:
    """Say which cells do not count; it is an error if none does."""
    if not (refused := results.refused):
        return
    names = [f"{row.group} {row.name} {row.severity}" for row in refused]
    message = (
        f"{len(names)} of {len(results.rows) - 1} cells are not reported, since the inputs of all "
        f"their frames equal the clean ones: {', '.join(names[:6])}{', ...' * (len(names) > 6)}"
    )
    if len(names) == len(results.rows) - 1:
        raise ValueError(f"{message}; the model uses nothing of what these corruptions change")
    print(f"bevstack robustness: {message}", file=sys.stderr)


def _shard(text: str | None) -> Any:
    """The option, or what torchrun says."""
    from ..robustness.benchmark import Shard

    if text is not None:
        return Shard.parse(text)
    return Shard(int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1)))


def _device(name: str | None) -> Any:
    import torch

    if name is None:
        local = int(os.environ.get("LOCAL_RANK", 0))
        name = f"cuda:{local}" if torch.cuda.is_available() else "cpu"
    return torch.device(name)


def _say(line: str) -> None:
    print(line, flush=True)
