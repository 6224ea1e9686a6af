"""The fused kernels compile for GPUs that are not here, to what docs/kernels.md says.

What they take is little: no matrix units, and shared memory for what the rows of a program share.
"""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import triton
from compile_cases_fused import CASES

sys.path.append(str(Path(__file__).resolve().parents[1]))
from docs_kernels import ARCHITECTURES, PAGE, compile_all, differences, findings

KIB = 1024


@pytest.mark.slow
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_fused_kernels_compile_to_what_the_page_says(architecture):
    reports = compile_all(architecture, CASES)
    assert [*dict.fromkeys(report["label"] for report in reports)] == [*CASES]
    assert not [found for report in reports for found in findings(architecture, report)]
    assert max(report["shared"] for report in reports) <= 32 * KIB
    assert not any(report["matrix"] for report in reports)
    page = PAGE.read_text("utf-8")
    if f"Triton {triton.__version__} for" in page:  # another version allocates otherwise
        assert not [*differences(page, architecture, reports)]
