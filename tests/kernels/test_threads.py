"""Compiled loops under threads, forks and read-only folders."""

import multiprocessing
import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from bevstack.kernels import threads
from bevstack.kernels.numba_bev_pool import find_runs, pool_runs
from bevstack.kernels.threads import in_parallel


def pooled(num_threads: int) -> np.ndarray:
    random = np.random.default_rng(0)
    cell = random.integers(-1, 4000, (2, 20, 8, 30))
    depth = random.random((2, 20, 8, 30), dtype=np.float32)
    features = random.standard_normal((2, 8, 30, 16), dtype=np.float32)
    return pool_runs(depth, features, find_runs(cell, 4000, num_threads), num_threads)


@pytest.mark.parametrize("size", [0, 1, 7, 100])
@pytest.mark.parametrize("num_threads", [1, 2, 5])
def test_every_item_is_visited_once(size, num_threads):
    visits = np.zeros(size, int)

    def work(low, high):
        visits[low:high] += 1

    in_parallel(work, size, num_threads)
    assert (visits == 1).all()


@pytest.mark.parametrize("bad", [0, 99])
def test_error_in_a_thread_reaches_the_caller(bad):
    def work(low, high):
        if low <= bad < high:
            raise ValueError("range")

    with pytest.raises(ValueError, match="range"):
        in_parallel(work, 100, 4)


def test_two_threads_may_call_at_once():
    expected = pooled(1)
    with ThreadPoolExecutor(4) as callers:
        results = list(callers.map(lambda _: pooled(3), range(16)))
    assert all(np.array_equal(result, expected) for result in results)


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="of Linux")
def test_no_thread_of_the_pool_runs_on_the_callers_core(monkeypatch):
    allowed = os.sched_getaffinity(0)
    for core in sorted(allowed):
        monkeypatch.setattr(threads, "_current_core", lambda core=core: core)
        for _ in range(2):  # a thread that has just begun is told at the next call
            in_parallel(lambda low, high: time.sleep(0.01), 40, 3)
        assert threads._pool_threads
        for thread in threads._pool_threads:
            assert os.sched_getaffinity(thread) == (allowed - {core} or allowed)
    assert os.sched_getaffinity(0) == allowed


def _send_pooled(queue) -> None:
    queue.put(pooled(2))


@pytest.mark.skipif(sys.platform != "linux", reason="fork is used for data loading on Linux")
def test_forked_worker_may_call_after_its_parent():
    expected = pooled(2)  # the parent's threads exist by now; its child has none of them
    context = multiprocessing.get_context("fork")
    queue = context.SimpleQueue()
    worker = context.Process(target=_send_pooled, args=(queue,))
    worker.start()
    result = queue.get()
    worker.join(30)
    assert worker.exitcode == 0
    assert np.array_equal(result, expected)


def test_works_where_no_cache_can_be_written(monkeypatch):
    import numba

    real = numba.njit

    def no_cache(*args, cache=False, **options):
        if cache:
            raise RuntimeError("cannot cache function: no locator available")
        return real(*args, **options)

    monkeypatch.setattr(threads.numba, "njit", no_cache)
    assert threads.compiled(lambda x: x + 1)(2) == 3


def test_package_names_are_functions_however_they_are_imported():
    code = (
        "from bevstack.kernels.bev_pool import bev_pool as direct\n"
        "from bevstack.kernels.voxelize import voxelize\n"
        "import bevstack.kernels as kernels\n"
        "assert kernels.bev_pool is direct and kernels.voxelize is voxelize\n"
        "from bevstack.kernels import bev_pool\n"
        "assert bev_pool is direct\n"
        "assert all(getattr(kernels, name) is not None for name in kernels.__all__)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
