"""What the Triton launchers need to know about a GPU to cut their work: plain numbers."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import torch

KIB = 1024


@dataclass(frozen=True)
class GPU:
    """One kind of device."""

    shared_memory: int  # bytes a program may take of a processor's
    processors: int
    # Rows of a tile from which on the matrix units take whole operands out of shared memory (wgmma
    # of Hopper, tcgen05 of Blackwell); 0: they have no such instructions.
    wide_matrix_rows: int = 0
    accumulates_aside: bool = False  # accumulators have a memory of their own (Blackwell)
    fp8: bool = False  # converts e4m3 in hardware
    amd: bool = False


GPUS = {
    "sm_80": GPU(163 * KIB, 108),  # A100
    "sm_86": GPU(99 * KIB, 84),  # A40, RTX 3090
    "sm_89": GPU(99 * KIB, 142, fp8=True),  # L40S, RTX 4090
    "sm_90": GPU(227 * KIB, 132, wide_matrix_rows=64, fp8=True),  # H100, H200
    "sm_100": GPU(227 * KIB, 148, wide_matrix_rows=64, accumulates_aside=True, fp8=True),  # B200
    "sm_120": GPU(99 * KIB, 170, fp8=True),  # RTX 5090
    "gfx942": GPU(64 * KIB, 304, amd=True),  # MI300X
}
"""Known kinds, by the name of their architecture; compiled for without a device."""


@cache
def gpu_of(device: torch.device) -> GPU:
    """The kind of `device`; a CPU (Triton's interpreter) has one processor and memory enough."""
    if device.type != "cuda":
        return GPU(227 * KIB, 1)
    about = torch.cuda.get_device_properties(device)
    if torch.version.hip:
        return GPU(about.shared_memory_per_block, about.multi_processor_count, amd=True)
    major, minor = about.major, about.minor
    wide = major in (9, 10, 11)  # 12, consumers' Blackwell, has neither wgmma nor tcgen05
    return GPU(
        about.shared_memory_per_block_optin,
        about.multi_processor_count,
        wide_matrix_rows=64 if wide else 0,
        accumulates_aside=major in (10, 11),
        fp8=(major, minor) >= (8, 9),
    )
