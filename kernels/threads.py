"""Run compiled loops on several cores, and compile them.

Plain Python threads over loops that release the GIL, not numba's own threads: numba aborts the
process when its OpenMP pool meets a fork (a data loader's workers) and when its workqueue pool is
entered from two threads. It also compiles a serial loop several times faster than a parallel one.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from typing import Any

import numba

# Each range is the work of one thread: what it writes, no other does, so that the result does not
# depend on their number. More ranges than threads, because some hold more work than others.
RANGES_PER_THREAD = 8

_pool: ThreadPoolExecutor | None = None
_pool_size = 0
_pool_threads: list[int] = []  # as the system numbers them
_apart: tuple = ()  # what the threads of the pool were last told
_lock = threading.Lock()
_current_core = getattr(ctypes.PyDLL(None), "sched_getcpu", None) if os.name == "posix" else None


def compiled(function: Callable) -> Any:
    """Compile a loop with numba at its first call; the result is kept on disk where possible.

    Sums may be reassociated, which vectorises them; the same machine gives the same bits.
    """
    return _compile(function, {"reassoc", "contract", "nsz"})


def compiled_in_order(function: Callable) -> Any:
    """As :func:`compiled`, but sums and differences stay as written.

    For geometry, where a difference of near numbers is exact as long as nobody regroups it.
    """
    return _compile(function, {"contract", "nsz"})


def _compile(function: Callable, fastmath: set[str]) -> Any:
    # Divisions as numpy's: a check for zero would keep loops from becoming vector code.
    options: dict[str, Any] = {"nogil": True, "fastmath": fastmath, "error_model": "numpy"}
    try:
        return numba.njit(cache=True, **options)(function)
    except RuntimeError:  # no writable folder for the cache: a read-only container
        return numba.njit(**options)(function)


def available_threads() -> int:
    """Number of cores this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def in_parallel(
    work: Callable[[int, int], None],
    size: int,
    num_threads: int | None = None,
    smallest: int = 1,
) -> None:
    """Call ``work(low, high)`` for ranges that together cover ``range(size)``.

    Args:
        work: runs one range; must release the GIL to gain from threads.
        size: number of items.
        num_threads: threads to use; all cores of this process by default.
        smallest: fewest items that are worth a range of their own.
    """
    num_threads = num_threads or available_threads()
    num_ranges = min(num_threads * RANGES_PER_THREAD, size // smallest)
    if num_threads == 1 or num_ranges <= 1:
        work(0, size)
        return
    bounds = [size * i // num_ranges for i in range(num_ranges + 1)]
    ranges = deque(pairwise(bounds))

    def drain() -> None:
        while True:
            try:
                low, high = ranges.popleft()
            except IndexError:
                return
            work(low, high)

    helpers = _threads(num_threads - 1)
    _keep_off_this_core()
    futures = [helpers.submit(drain) for _ in range(min(num_threads, num_ranges) - 1)]
    try:
        drain()
    finally:
        # Also when this range failed: the others still write to the caller's arrays.
        ranges.clear()
        # A thread that has not begun finds nothing left to do: on a busy machine it may be long.
        errors = [future.exception() for future in futures if not future.cancel()]
    for error in errors:
        if error is not None:
            raise error


def _threads(size: int) -> ThreadPoolExecutor:
    global _pool, _pool_size, _pool_threads
    with _lock:
        if _pool is None or _pool_size < size:
            # A list of its own: of a pool that is replaced some thread may begin later.
            _pool_threads = own = []
            _pool = ThreadPoolExecutor(
                size, "bevstack", lambda: own.append(threading.get_native_id())
            )
            _pool_size = size
        return _pool


def _keep_off_this_core() -> None:
    """Let the pool's threads run anywhere but on the caller's core.

    Linux may wake a thread on the core of the one that waits for it though another is idle, as was
    seen in a virtual machine of two: for 50 ms, until it balances load, they do the work of one.
    """
    global _apart
    if _current_core is None or not hasattr(os, "sched_setaffinity"):
        return
    others = os.sched_getaffinity(0) - {_current_core()}
    with _lock:
        told = others, tuple(_pool_threads)
        if told == _apart or not others:
            return
        for thread in told[1]:
            with contextlib.suppress(OSError):  # it has ended, or a sandbox does not allow it
                os.sched_setaffinity(thread, others)
        _apart = told


def _forget_threads() -> None:
    """A forked child has none of its parent's threads, and perhaps a lock held for ever."""
    global _pool, _pool_size, _pool_threads, _apart, _lock
    _pool, _pool_size, _pool_threads, _apart, _lock = None, 0, [], (), threading.Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_threads)
