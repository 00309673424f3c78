"""Compile every Triton kernel for GPUs that are not here, and list the registers they use.

    python tools/kernel_resources.py

Registers and spills are read from the compiled object: with triton's own cuobjdump on NVIDIA, from
the assembly's metadata on AMD.
"""

from __future__ import annotations

import re
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

import triton
from triton import knobs
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from bevstack.kernels import triton_bev_pool, triton_voxelize

TARGETS = {
    "sm_80": GPUTarget("cuda", 80, 32),
    "sm_90": GPUTarget("cuda", 90, 32),
    "sm_100": GPUTarget("cuda", 100, 32),
    "gfx942": GPUTarget("hip", "gfx942", 64),
}

# 80 channels, as BEVFusion lifts; 5, as LiDAR points have. The launchers choose the same blocks.
POOL = {**triton_bev_pool.POOL_BLOCKS, "BLOCK_C": triton_bev_pool.channel_block(80, 16, 128)}
BACKWARD = {**triton_bev_pool.BACKWARD_BLOCKS, "BLOCK_C": POOL["BLOCK_C"], "DOT_TYPE": None}
DEPTH_GRAD = {**BACKWARD, "BLOCK_C": triton_bev_pool.DEPTH_GRAD_CHANNELS}
POINTS = triton_voxelize.blocks_of(5)
KERNELS = {
    "pool": (triton_bev_pool.pool_kernel, POOL),
    "features_grad": (triton_bev_pool.features_grad_kernel, BACKWARD),
    "depth_grad": (triton_bev_pool.depth_grad_kernel, DEPTH_GRAD),
    "voxel_mean": (triton_voxelize.mean_kernel, POINTS),
    "voxel_max": (triton_voxelize.max_kernel, POINTS),
}
# What the pointers point to, where that is not the type of the features.
POINTER_TYPES = {
    **dict.fromkeys(("cell_first_ptr", "by_cell_ptr", "column_first_ptr", "by_column_ptr"), "*i32"),
    **dict.fromkeys(("order_ptr", "first_ptr", "winner_ptr"), "*i64"),
}


@dataclass(frozen=True)
class Usage:
    """What one compiled kernel needs."""

    registers: int  # per thread
    spilled: int  # bytes of stack per thread (NVIDIA), spilled registers (AMD)
    shared: int  # bytes of shared memory per program


def compile_for(name: str, dtype: str, target: str) -> Usage:
    """Compile a kernel of ``KERNELS`` with features in "bf16", "fp16" or "fp32"."""
    kernel, constants = KERNELS[name]
    dot_type = {"bf16": triton.language.bfloat16, "fp16": triton.language.float16}
    constants = {
        key: dot_type.get(dtype, triton.language.float32) if key == "DOT_TYPE" else value
        for key, value in constants.items()
        if key in kernel.arg_names
    }
    signature = {
        argument: "constexpr"
        if argument in constants
        else POINTER_TYPES.get(argument, f"*{dtype}" if argument.endswith("_ptr") else "i32")
        for argument in kernel.arg_names
    }
    # Allocations of torch are aligned, and the compiler is told so at every launch.
    aligned = {
        (i,): [["tt.divisibility", 16]]
        for i, argument in enumerate(kernel.arg_names)
        if argument.endswith("_ptr")
    }
    source = ASTSource(kernel, signature, constants, aligned)
    options = {"enable_fp_fusion": True}
    compiled = triton.compile(source, target=TARGETS[target], options=options)
    read = _read_amd if target.startswith("gfx") else _read_nvidia
    return Usage(*read(compiled.asm), compiled.metadata.shared)


def _read_nvidia(asm) -> tuple[int, int]:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "kernel.cubin"
        path.write_bytes(asm["cubin"])
        dump = [knobs.nvidia.cuobjdump.path, "--dump-resource-usage", path]
        text = subprocess.run(dump, capture_output=True, text=True, check=True).stdout
    return _number("REG", text), _number("STACK", text) + _number("LOCAL", text)


def _read_amd(asm) -> tuple[int, int]:
    text = asm["amdgcn"]
    spilled = _number(".vgpr_spill_count", text) + _number(".sgpr_spill_count", text)
    return _number(".vgpr_count", text), spilled


def _number(name: str, text: str) -> int:
    found = re.search(rf"{re.escape(name)}:\s*(\d+)", text)
    assert found, f"no {name} in {text[:200]}"
    return int(found[1])


def main() -> None:
    print(f"triton {triton.__version__}")
    print(f"{'kernel':14} {'type':5} {'target':7} {'registers':>9} {'spilled':>7} {'shared':>7}")
    for name in KERNELS:
        for dtype in ("bf16", "fp32"):
            for target in TARGETS:
                usage = compile_for(name, dtype, target)
                print(
                    f"{name:14} {dtype:5} {target:7} "
                    f"{usage.registers:9} {usage.spilled:7} {usage.shared:7}"
                )


if __name__ == "__main__":
    main()
