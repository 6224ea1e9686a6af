"""Compile Triton kernels for a GPU that is not here; print what came out as JSON lines.

    python tests/kernels/ahead_of_time.py sm_90 ["prefill 4 × 128" ...]

Run as a script, in a process of its own: Triton's compiler and its interpreter exclude each other.
The kernels are compiled for exactly what their launchers pass: a launch is recorded, not run.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Hashable, Iterable, Mapping
from dataclasses import asdict

from compile_cases import attention_cases
from compile_cases_experts import expert_cases
from compile_cases_fused import CASES as FUSED_CASES
from compiled_kernel import compile_launch
from recorded_launches import Launch, recorded_launches

from assembler.kernels.gpu import GPUS

WIDE = {"sm_90": "HGMMA", "sm_100": "UTCHMMA"}  # by which tiles of 64 rows or more are multiplied


def cases_of(architecture: str) -> Mapping[str, Callable[[], None]]:
    """All that is compiled, by what a report calls it."""
    return {**attention_cases(architecture), **expert_cases(architecture), **FUSED_CASES}


def report(label: str, launch: Launch, architecture: str) -> dict[str, object]:
    """What one kernel took, how it was launched and what is wanted of it."""
    tiles = launch.named.get("tiles")
    tile = "" if tiles is None else f"{tiles.BLOCK_M} rows × {tiles.TILE} keys, "
    named = launch.named
    return {
        "label": label,
        **asdict(compile_launch(launch, architecture)),
        "launch": f"{tile}{named.get('num_warps', 4)}, {named.get('num_stages', 3)}",
        "shared_limit": GPUS[architecture].shared_memory,
        "wanted_matrix": wanted_matrix(label, launch, architecture),
    }


def wanted_matrix(label: str, launch: Launch, architecture: str) -> str | None:
    """The matrix instruction to be found; "": none at all; None: whatever there is.

    Tensor cores would round float32 to TF32; AMD's multiply it exactly.
    """
    tiles = launch.named.get("tiles")
    rows = launch.named.get("BLOCK_M") if tiles is None else tiles.BLOCK_M
    if rows is None:
        return None
    if label.endswith("fp32"):
        return None if architecture.startswith("gfx") else ""
    if architecture.startswith("gfx"):
        return "v_mfma"
    return WIDE.get(architecture, "HMMA") if rows >= 64 else "HMMA"


def main(architecture: str, *labels: str) -> None:
    cases = cases_of(architecture)
    for label in labels or cases:
        with recorded_launches() as launches:
            cases[label]()
        for launch in distinct(launches):
            print(json.dumps(report(label, launch, architecture)), flush=True)


def distinct(launches: Iterable[Launch]) -> list[Launch]:
    """One launch of each kernel and each set of constants that it is compiled for."""
    return list({variant(launch): launch for launch in launches}.values())


def variant(launch: Launch) -> tuple[Hashable, ...]:
    """The kernel, its constants, and which arguments there are, of which dtypes."""
    about = (getattr(value, "dtype", type(value)) for value in launch.arguments)
    return (launch.kernel.__name__, *about, *sorted(launch.named.items()))


if __name__ == "__main__":
    main(*sys.argv[1:])
