"""Compile every Triton kernel for GPUs that are not here, and list the registers they use.

    python tools/kernel_resources.py [--out docs/results/kernel_resources.md]

Registers and spills are read from the compiled object: with triton's own cuobjdump on NVIDIA, from
the assembly's metadata on AMD.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import FunctionType
from typing import Any

import torch
import triton
from triton import knobs
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from bevstack.kernels import (
    triton_bev_pool,
    triton_boxes,
    triton_neighbors,
    triton_nms,
    triton_sparse_conv,
    triton_voxelize,
)

TARGETS = {
    "sm_80": GPUTarget("cuda", 80, 32),
    "sm_90": GPUTarget("cuda", 90, 32),
    "sm_100": GPUTarget("cuda", 100, 32),
    "gfx942": GPUTarget("hip", "gfx942", 64),
}

# 80 channels, as BEVFusion lifts; 5, as LiDAR points have. The launchers choose the same blocks.
POOL_BLOCK = {"BLOCK_C": triton_bev_pool.channel_block(80), "aligned": ("C",)}
POINTS = triton_voxelize.blocks_of(5)
OFFSETS = triton_neighbors.blocks_of(27)
GROUPS = triton_neighbors.pattern_blocks(27)
FLAT = {"BLOCK": triton_neighbors.FLAT_BLOCK}
OVERLAP = {"ALIGNED": False, "IN_SPACE": True, "AREA_ONLY": False, **triton_boxes.PAIRS}


def pool(blocks: Callable[[Any], dict[str, int]]) -> Callable:
    """Constants of a pooling kernel, as a function of the dtype: its blocks follow from it."""
    return lambda dtype: {
        **blocks(triton_sparse_conv.DOT_TYPES[dtype]),
        **POOL_BLOCK,
        "DOT_TYPE": None,
    }


def conv(channels: int, blocks: Callable[[int, int, torch.dtype], dict]) -> Callable:
    """Constants of a sparse convolution, as a function of the dtype: its blocks follow from it."""
    epilogue = {"RELU": True, "DOT_TYPE": None, "PRECISION": "ieee"}
    return lambda dtype: {**blocks(channels, channels, dtype), **epilogue}


KERNELS: dict[str, tuple[Any, Any]] = {
    "pool_runs": (triton_bev_pool.run_kernel, pool(triton_bev_pool.run_blocks)),
    "pool_cells": (triton_bev_pool.cell_kernel, {**triton_bev_pool.CELL_BLOCKS, **POOL_BLOCK}),
    "pool_backward": (triton_bev_pool.backward_kernel, pool(triton_bev_pool.backward_blocks)),
    "voxel_mean": (triton_voxelize.mean_kernel, POINTS),
    "voxel_max": (triton_voxelize.max_kernel, POINTS),
    "insert": (triton_neighbors.insert_kernel, {"BLOCK_V": triton_neighbors.INSERT_BLOCK}),
    "lookup": (triton_neighbors.lookup_kernel, OFFSETS),
    "mark": (triton_neighbors.mark_kernel, OFFSETS),
    "count": (triton_neighbors.count_kernel, FLAT),
    "link": (triton_neighbors.link_kernel, OFFSETS),
    "invert": (triton_neighbors.invert_kernel, FLAT),
    "pattern": (triton_neighbors.pattern_kernel, GROUPS),
    "arrange": (triton_neighbors.arrange_kernel, {"ROWS": triton_neighbors.ROWS}),
    "box_overlap": (triton_boxes.overlap_kernel, OVERLAP),
    "find_box": (triton_boxes.find_box_kernel, triton_boxes.POINTS),
    "count_points": (triton_boxes.count_points_kernel, triton_boxes.COUNTS),
    "iou_bits": (triton_nms.iou_bits_kernel, triton_nms.MASK),
    "circle_bits": (triton_nms.circle_bits_kernel, triton_nms.MASK),
    # A thousand boxes, and the most.
    "sweep_16": (triton_nms.sweep_kernel, triton_nms.sweep_blocks(16)),
    "sweep_1024": (triton_nms.sweep_kernel, triton_nms.sweep_blocks(1024)),
    # The narrowest and the widest layer of BEVFusion's encoder.
    **{
        f"{name}_{channels}": (kernel, conv(channels, blocks))
        for name, kernel, blocks in (
            ("conv", triton_sparse_conv.conv_kernel, triton_sparse_conv.conv_blocks),
            (
                "weight_grad",
                triton_sparse_conv.weight_grad_kernel,
                triton_sparse_conv.weight_grad_blocks,
            ),
        )
        for channels in (16, 128)
    },
}
# What the pointers point to, where that is not the type of the features.
POINTER_TYPES = {
    **dict.fromkeys(("cell_first_ptr", "by_cell_ptr", "column_first_ptr", "by_column_ptr"), "*i32"),
    **dict.fromkeys(("order_ptr", "first_ptr", "winner_ptr"), "*i64"),
    **dict.fromkeys(("coordinates_ptr", "values_ptr", "rows_ptr", "outputs_ptr"), "*i32"),
    **dict.fromkeys(("bits_ptr", "counts_ptr", "upto_ptr", "by_input_ptr", "pattern_ptr"), "*i32"),
    **dict.fromkeys(("slots_ptr", "masks_ptr", "blocks_ptr"), "*i32"),
    **dict.fromkeys(("keys_ptr", "sorted_ptr", "table_ptr", "found_ptr", "count_ptr"), "*i64"),
    **dict.fromkeys(("boxes_ptr", "others_ptr", "overlap_ptr", "points_ptr"), "*fp32"),
    **{"discs_ptr": "*fp32", "threshold_ptr": "*fp32", "group_ptr": "*i32", "keep_ptr": "*i1"},
    "partial_ptr": "*fp32",
}
DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
# Multiples of 16, which the compiler is told as well.
ALIGNED_NUMBERS = ("C_in", "C_out", "num_slots")


@dataclass(frozen=True)
class Usage:
    """What one compiled kernel needs."""

    registers: int  # per thread
    spilled: int  # bytes of stack per thread (NVIDIA), spilled registers (AMD)
    shared: int  # bytes of shared memory per program


def compile_for(name: str, dtype: str, target: str) -> Usage:
    """Compile a kernel of ``KERNELS`` with features in "bf16", "fp16" or "fp32"."""
    kernel, chosen = KERNELS[name]
    chosen = chosen(DTYPES[dtype]) if isinstance(chosen, FunctionType) else chosen
    dot_type = triton_sparse_conv.DOT_TYPES[DTYPES[dtype]]
    constants = {
        key: dot_type if key == "DOT_TYPE" else value
        for key, value in chosen.items()
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
        or argument in ALIGNED_NUMBERS
        or argument in chosen.get("aligned", ())
    }
    source = ASTSource(kernel, signature, constants, aligned)
    options = {"enable_fp_fusion": True}
    options |= {key: chosen[key] for key in ("num_warps", "num_stages") if key in chosen}
    if target.startswith("gfx") and "num_stages" in chosen:
        options["num_stages"] = min(chosen["num_stages"], triton_sparse_conv.AMD_STAGES)
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


def table() -> str:
    """All kernels on all targets, in Markdown."""
    lines = [
        "| kernel | type | target | registers | spilled | shared bytes |",
        "|---|---|---|---:|---:|---:|",
    ]
    for name in KERNELS:
        for dtype in ("bf16", "fp32"):
            for target in TARGETS:
                usage = compile_for(name, dtype, target)
                lines.append(
                    f"| {name} | {dtype} | {target} "
                    f"| {usage.registers} | {usage.spilled} | {usage.shared} |"
                )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--out", type=Path, help="write the table here as well (Markdown)")
    out = parser.parse_args().out
    listed = table()
    print(listed)
    if out:
        out.write_text(
            "# What the Triton kernels need on GPUs\n\n"
            "Registers per thread, spills and shared memory of a program, as compiled by Triton "
            f"{triton.__version__} with no GPU at hand.\nSpilled: bytes of stack per thread "
            "(NVIDIA), registers (AMD). Tests hold it to zero on sm_90.\n"
            f"Written by `python tools/kernel_resources.py --out docs/results/{out.name}`.\n\n"
            f"{listed}\n"
        )


if __name__ == "__main__":
    main()
