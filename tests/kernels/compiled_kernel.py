"""Compile a recorded launch for a GPU that is not here, and read what the machine code needs.

NVIDIA's tools (ptxas, cuobjdump) come with Triton; for AMD the assembly says all by itself.
"""

from __future__ import annotations

import re
import subprocess
import tempfile
from collections import Counter
from dataclasses import dataclass

from recorded_launches import Launch
from triton import knobs

# Instructions of the matrix units, by the beginning of their names.
_NVIDIA_MATRIX = re.compile(r"\b((?:HMMA|HGMMA|QGMMA|IMMA|UTC[A-Z]*MMA)\b)")
_AMD_MATRIX = re.compile(r"\b(v_mfma)_")


@dataclass(frozen=True)
class Resources:
    """What one compiled kernel takes."""

    kernel: str
    registers: int  # a thread
    spills: int  # bytes a thread of registers kept in memory
    shared: int  # bytes a program
    matrix: dict[str, int]  # matrix instructions found in the machine code


def compile_launch(launch: Launch, architecture: str) -> Resources:
    """Compile it as Triton does before it launches; architecture: e.g. "sm_90" or "gfx942"."""
    compiled = launch.compile(architecture)
    name, shared = launch.kernel.__name__, compiled.metadata.shared
    if architecture.startswith("sm_"):
        return _nvidia(name, shared, compiled.asm["cubin"])
    return _amd(name, shared, compiled.asm["amdgcn"])


def _nvidia(name: str, shared: int, cubin: bytes) -> Resources:
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        usage = _cuobjdump("--dump-resource-usage", file.name)
        code = _cuobjdump("--dump-sass", file.name)
    registers, stack = (int(re.search(rf"\b{key}:(\d+)", usage)[1]) for key in ("REG", "STACK"))
    matrix = Counter(_NVIDIA_MATRIX.findall(code))
    if not re.search(r"\b(LDL|STL)\b", code):
        stack = 0  # reserved, but never read or written
    return Resources(name, registers, stack, shared, dict(matrix))


def _cuobjdump(option: str, path: str) -> str:
    command = [knobs.nvidia.cuobjdump.path, option, path]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def _amd(name: str, shared: int, code: str) -> Resources:
    def number(key: str) -> int:
        return int(re.search(rf"\.{key}:\s+(\d+)", code)[1])

    matrix = Counter(_AMD_MATRIX.findall(code))
    registers, spills = number("vgpr_count"), number("private_segment_fixed_size")
    return Resources(name, registers, spills, shared, dict(matrix))
