"""``bevstack doctor``: what this machine has, which path each operation takes, what to install."""

from __future__ import annotations

import importlib.util
import os
import platform
import sys
from dataclasses import dataclass
from importlib import metadata


@dataclass(frozen=True)
class Finding:
    """One line of the report."""

    name: str
    state: str  # what was found
    consequence: str  # which path is taken, or what it is needed for
    remedy: str = ""  # what to run to have it; empty where nothing is missing


def _version(distribution: str) -> str | None:
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None


def _import_error(module: str) -> str | None:
    """Why a module that is installed cannot be imported; None if it can."""
    try:
        importlib.import_module(module)
    except Exception as error:  # a broken native library may raise anything
        return f"{type(error).__name__}: {error}".splitlines()[0]
    return None


def _package(
    distribution: str, module: str, use: str, extra: str, consequence_without: str
) -> Finding:
    version = _version(distribution)
    if version is None or importlib.util.find_spec(module.split(".")[0]) is None:
        return Finding(
            distribution, "not installed", consequence_without, f"pip install 'bevstack[{extra}]'"
        )
    error = _import_error(module)
    if error:
        remedy = "apt-get install libusb-1.0-0" if "libusb" in error else f"reinstall: {error}"
        return Finding(distribution, f"{version}, does not import", consequence_without, remedy)
    return Finding(distribution, version, use)


def _machine() -> list[Finding]:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    system = f"{platform.system()} {platform.machine()}"
    return [
        Finding("python", platform.python_version(), sys.executable),
        Finding("machine", f"{system}, {cores} cores", "number of loader processes: cores - 1"),
    ]


def _torch() -> list[Finding]:
    if _version("torch") is None:
        remedy = "pip install 'bevstack[train]'"
        return [Finding("torch", "not installed", "no training; the runtime needs none", remedy)]
    import torch

    build = f"CUDA {torch.version.cuda}" if torch.version.cuda else "CPU build"
    if torch.version.hip:
        build = f"ROCm {torch.version.hip}"
    findings = [Finding("torch", f"{torch.__version__}", build)]
    if not torch.cuda.is_available():
        missing = "" if build == "CPU build" else "check the driver: nvidia-smi or rocm-smi"
        return [*findings, Finding("GPU", "none", "everything runs on the CPU", missing)]
    for index in range(torch.cuda.device_count()):
        gpu = torch.cuda.get_device_properties(index)
        arch = (
            getattr(gpu, "gcnArchName", "") if torch.version.hip else f"sm_{gpu.major}{gpu.minor}"
        )
        state = f"{gpu.name}, {arch}, {gpu.total_memory / 2**30:.0f} GiB"
        findings.append(Finding(f"GPU {index}", state, "training and kernels run here"))
    return findings


def _operations() -> list[Finding]:
    """Which path each operation of bevstack.kernels takes: the device alone picks it."""
    if _version("torch") is None:
        return []
    import torch

    triton = _version("triton") or _version("pytorch-triton-rocm")
    on_gpu = torch.cuda.is_available() and triton is not None
    path = "Triton on the GPU" if on_gpu else "compiled by numba on the CPU"
    remedy = "" if triton or not torch.cuda.is_available() else "pip install triton"
    return [
        Finding("triton", triton or "not installed", "kernels on a GPU", remedy),
        Finding("bev_pool", path, "camera features to the BEV map"),
        Finding("voxelize", path, "points to pillars and voxels"),
        Finding("sparse_conv", path, "voxels to the BEV map"),
        Finding("box_iou, nms", path, "overlap and suppression of boxes; points in boxes"),
    ]


def _onnxruntime() -> Finding:
    without = "exported models do not run"
    finding = _package("onnxruntime", "onnxruntime", "runs exported models", "runtime", without)
    if finding.remedy:
        return finding
    import onnxruntime

    providers = ", ".join(
        name.removesuffix("ExecutionProvider") for name in onnxruntime.get_available_providers()
    )
    return Finding("onnxruntime", f"{finding.state}", f"providers: {providers}")


def examine() -> list[Finding]:
    """Everything that ``bevstack doctor`` prints, in order."""
    open3d = "open3d-cpu" if _version("open3d-cpu") else "open3d"
    packages = [
        _package("numba", "numba", "CPU kernels, metrics", "train", "nothing works without it"),
        _package(
            "pytorch-lightning", "pytorch_lightning", "bevstack train", "train", "no training"
        ),
        _package("transformers", "transformers", "image backbones", "train", "no camera branch"),
        _package(open3d, "open3d", "bevstack synthesize", "synthetic", "no synthetic world"),
        _package(
            "nuscenes-devkit", "nuscenes", "evaluate --official", "official", "own metrics only"
        ),
        _package("matplotlib", "matplotlib", "reports", "view", "no reports"),
        _package("starlette", "starlette", "bevstack serve", "serve", "no server"),
        _package(
            *("spconv", "spconv.pytorch", "sparse convolution: engine spconv, yardstick"),
            *("spconv", "not needed: sparse convolution is our own"),
        ),
    ]
    return [*_machine(), *_torch(), *_operations(), _onnxruntime(), *packages]


def print_report() -> None:
    """Print the findings as a table, remedies last."""
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    findings = examine()
    table = Table(title="bevstack doctor", title_justify="left")
    for column in ("what", "found", "so"):
        table.add_column(column, overflow="fold")
    for finding in findings:
        colour = "yellow" if finding.remedy else "green"
        table.add_row(finding.name, f"[{colour}]{escape(finding.state)}[/]", finding.consequence)
    console = Console()
    console.print(table)
    remedies = [f for f in findings if f.remedy]
    for finding in remedies:
        console.print(f"  {finding.name}: [bold]{escape(finding.remedy)}[/]", highlight=False)
    if not remedies:
        console.print("Nothing is missing.")
