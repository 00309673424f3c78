"""Where a figure comes from: what stands beside every result that a tool writes."""

from __future__ import annotations

import platform
import subprocess
from datetime import UTC, datetime
from pathlib import Path

import torch


def provenance(command: str) -> dict[str, str]:
    """Command, commit ("-dirty" with changes that are not committed), date and machine."""
    return {
        "command": command,
        "commit": commit(),
        "date": datetime.now(UTC).date().isoformat(),
        "machine": machine(),
    }


def commit() -> str:
    """The commit that the tools lie in."""
    git = ["git", "-C", Path(__file__).parent, "describe", "--always", "--dirty"]
    return subprocess.run(git, capture_output=True, text=True).stdout.strip()


def machine() -> str:
    """The GPU where there is one, otherwise the processor and how many threads torch uses."""
    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    return f"{_processor()}, {torch.get_num_threads()} threads"


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.machine()
    names = (line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.machine())
