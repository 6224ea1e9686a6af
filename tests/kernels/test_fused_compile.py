"""The fused kernels compile for real devices, within their registers and shared memory.

One of each; docs/kernels.md has all of them, for more devices.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

KIB = 1024


@pytest.mark.slow
@pytest.mark.parametrize("architecture", ["sm_90", "gfx942"])
def test_the_kernels_fit_the_device(architecture: str, tmp_path: Path) -> None:
    environment = os.environ | {
        "TRITON_INTERPRET": "0",
        "TRITON_CACHE_DIR": str(tmp_path),
        "PYTHONPATH": os.pathsep.join(sys.path),
    }
    script = Path(__file__).with_name("compile_cases_fused.py")
    command = [sys.executable, "-W", "error", str(script), architecture]
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    kernels = [json.loads(line) for line in done.stdout.splitlines()]
    assert [kernel["kernel"] for kernel in kernels] == [
        *("norm_kernel", "norm_kernel", "norm_kernel", "norm_kernel"),
        *("rope_kv_kernel", "rope_kv_kernel", "embed_kernel"),
        *("sample_kernel", "sample_kernel", "gated_kernel"),
    ]
    assert [kernel["spills"] for kernel in kernels] == [0] * len(kernels)
    assert max(kernel["shared"] for kernel in kernels) <= 8 * KIB
    assert not any(kernel["matrix"] for kernel in kernels)
