"""Triton kernels without a GPU: run by the interpreter, and compiled for four architectures."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from kernel_cases import load_tool

pytest.importorskip("triton")
resources = load_tool("kernel_resources")


@pytest.mark.slow
def test_kernels_match_the_reference_in_the_interpreter():
    # A process of its own: Triton decides where a kernel is defined whether it interprets it.
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-x", Path(__file__).with_name("interpreted.py")],
        env={**os.environ, "TRITON_INTERPRET": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert " passed" in done.stdout or "100%" in done.stdout


@pytest.mark.parametrize("dtype", ["bf16", "fp32"])
@pytest.mark.parametrize("kernel", resources.KERNELS)
def test_nothing_spills_on_sm_90(kernel, dtype):
    usage = resources.compile_for(kernel, dtype, "sm_90")
    assert usage.spilled == 0
    assert 0 < usage.registers <= 255


@pytest.mark.slow
@pytest.mark.parametrize("target", ["sm_80", "sm_100", "gfx942"])
@pytest.mark.parametrize("kernel", resources.KERNELS)
def test_compiles_for(kernel, target):
    assert resources.compile_for(kernel, "bf16", target).registers > 0
