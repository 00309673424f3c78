"""tools/gpu_check.py where there is no GPU: its checks under Triton's interpreter, its timings
with a clock of the CPU, and nothing installed but what it says it needs."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

pytest.importorskip("triton")
TOOLS = Path(__file__).parents[2] / "tools"
KERNEL_TESTS = Path(__file__).parents[1] / "kernels"

# torch, triton and numpy with what these need; a test process has much more.
BARE = """
import sys
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from importlib.metadata import packages_distributions
needed = {"torch", "torchgen", "functorch", "triton", "numpy", "typing_extensions", "sympy",
    "mpmath", "networkx", "jinja2", "markupsafe", "fsspec", "filelock", "setuptools", "bevstack"}
others = set(packages_distributions()) - needed
assert "numba" in others
class Missing(Loader):
    def exec_module(self, module):
        raise ModuleNotFoundError(f"{module.__name__} is not installed on a bare machine")
class Bare(MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        return ModuleSpec(name, Missing()) if name.partition(".")[0] in others else None
sys.meta_path.insert(0, Bare())
"""
START = f"""
import sys, torch
from pathlib import Path
sys.path[:0] = [{str(TOOLS)!r}, {str(KERNEL_TESTS)!r}]
import triton_interpreter
from gpu.checkout import import_kernels
import_kernels()
from gpu import boxes, pooling, sparse, voxels
"""
CHECKS = """
# Not bfloat16: the interpreter multiplies its bits as integers.
args = "cpu", Path("nowhere"), (torch.float32, torch.float16)
checks = [c for area in (pooling, voxels, sparse, boxes) for c in area.checks(*args)]
wrong = [check for check in checks if not check.passed]
assert not wrong, wrong
kernels = {check.kernel for check in checks}
assert {"bev_pool, map", "interval sum, gradient to depth", "voxel mean", "plan, place",
    "sparse_conv", "sparse_conv, gradient to weights", "neighbours, by input", "nms", "circle_nms",
    "points in boxes, first"} <= kernels
print(len(checks), "checks")
"""
TIMINGS = """
import time
import bench_geometry
from gpu.timing import Clock, table
class Event:
    def __init__(self, enable_timing): pass
    def record(self): self.at = time.perf_counter()
    def elapsed_time(self, other): return 1e3 * (other.at - self.at)
torch.cuda.Event, torch.cuda.synchronize = Event, lambda: None
torch.Tensor.cuda = lambda self: self
torch.cuda.set_sync_debug_mode = lambda mode: None
grid = bench_geometry.BEVGrid((-8, 8), (-8, 8), 4.0)
tiny = [bench_geometry.Geometry(n, (48, 32), 0.04, 16, (1.0, 7.0, 2.0), grid) for n in "ab"]
pooling.BEVFUSION, pooling.LARGE, pooling.CHANNELS = *tiny, 3
clock = Clock("cpu", 1 << 10, repeat=1)
timings = list(pooling.timings(clock, clock.copy_bandwidth(), Path("nowhere")))
checks = [*pooling.check_public(pooling.real_lift(tiny[0], Path("nowhere")))]
cloud = torch.from_numpy(bench_geometry.ten_sweeps(Path("nowhere"), 2000))
voxels.SHAPE, voxels.VOXEL_SIZE = (108, 54, 2), (1.0, 2.0, 4.0)
checks += voxels.check_public(cloud, torch.zeros(len(cloud), dtype=torch.int64))
assert len(checks) == 9 and all(check.passed for check in checks), checks
voxels.ten_sweeps = lambda data: cloud[:200].numpy()
timings += voxels.timings(clock, 1.0, Path("nowhere"))
pooled = {timing.task for timing in timings}
assert len(pooled) == 2 * (3 * 2 + 1) + 2, pooled
cells = torch.randint(8, 32, (60, 4), dtype=torch.int32).unique(dim=0)
cells[:, 0] = 0
sparse.real_voxels = lambda data: (cells.unique(dim=0), (41, 32, 32))
crowd, cloud = boxes.crowd, boxes.cloud
boxes.crowd = lambda count, device: crowd(20, "cpu")
boxes.cloud = lambda among, count: cloud(among, 50)
for area in (sparse, boxes):
    timings += area.timings(clock, 1.0, Path("nowhere"))
tasks = {timing.task for timing in timings}
assert len(tasks) == len(pooled) + 2 * 2 + 1 + 4, tasks
assert all(t.median_us >= t.fastest_us > 0 for t in timings)
print(table(timings))
"""


def run(code: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "TRITON_INTERPRET": "1", "PYTHONDONTWRITEBYTECODE": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.slow
def test_checks_run_and_pass_with_nothing_else_installed():
    assert run(BARE + START + CHECKS).endswith(" checks\n")


@pytest.mark.slow
def test_public_functions_are_checked_and_every_method_timed_beside_the_first():
    text = run(START + TIMINGS)
    for method in ("materialise + index_add", "segment_reduce", "interval sum in Triton", "ours"):
        assert method in text
    assert "**pool backward, b float32**" in text


def test_says_so_where_there_is_no_gpu():
    done = subprocess.run(
        [sys.executable, TOOLS / "gpu_check.py"],
        env={**os.environ, "CUDA_VISIBLE_DEVICES": ""},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2
    assert done.stderr.endswith("no GPU that torch can use; nothing was checked.\n")


def test_wrong_numbers_do_not_pass():
    sys.path.append(str(TOOLS))
    from gpu.checks import check

    exact = torch.randn(50, dtype=torch.float64)
    assert check("", "", exact.float(), exact).passed
    assert not check("", "", exact.float() * 1.001, exact).passed
    assert not check("", "", exact[:49].float(), exact).passed
    holed = exact.float()
    holed[7] = torch.nan
    assert not check("", "", holed, exact).passed
    assert not check("", "", torch.arange(5), torch.tensor([0, 1, 2, 3, 5])).passed
