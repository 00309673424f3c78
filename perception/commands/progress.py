"""Progress on a terminal as a bar, in a log file as a line now and then."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def progress_bar(title: str, unit: str) -> Iterator[Callable[[int, int], None]]:
    """Give a function ``advance(done, total)`` that shows progress while the block runs."""
    if not sys.stderr.isatty():
        yield _line_printer(title, unit)
        return
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn,
    )

    columns = (TextColumn(title), BarColumn(), MofNCompleteColumn(), TextColumn(unit))
    with Progress(*columns, TimeRemainingColumn(), console=Console(stderr=True)) as bar:
        task = bar.add_task(title, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


def _line_printer(title: str, unit: str, every_seconds: float = 5.0) -> Callable[[int, int], None]:
    start = time.monotonic()
    last = start

    def advance(done: int, total: int) -> None:
        nonlocal last
        now = time.monotonic()
        if done == total or now - last > every_seconds:
            last = now
            print(
                f"{title}: {done}/{total} {unit}, {now - start:.0f} s", file=sys.stderr, flush=True
            )

    return advance
