"""Every Triton kernel compiles for GPUs that are not here, to what docs/kernels.md says.

Fused kernels are compiled by `test_fused_compile`, so that two processes share the minutes.
"""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import triton
from ahead_of_time import cases_of
from compile_cases_fused import CASES as FUSED_CASES

sys.path.append(str(Path(__file__).resolve().parents[1]))
from docs_kernels import (
    ARCHITECTURES,
    PAGE,
    compile_all,
    differences,
    findings,
    table,
    with_floors,
    with_low_tiles,
)
from kernel_sources import code_of, compiled_files, digest

STALE = "the code of the kernels has changed since: run python tests/docs_kernels.py"


@pytest.fixture
def page() -> str:
    return PAGE.read_text("utf-8")


def test_the_page_is_of_this_code(page):
    assert f"compiled from: {digest()}" in page, STALE


def test_code_counts_and_words_do_not():
    code = 'X = 1\n\ndef f(a):\n    if a:\n        return "s"\n    return f"{a} b"\n'
    explained = '"""Doc."""\nX = 1  # one\n"""A constant."""\n\ndef f(\n    a):\n    """Does."""\n'
    assert code_of(code) == code_of(explained + code.split("f(a):\n")[1])
    for wrong in (("1", "2"), ('"s"', '"t"'), ("    return f", "        return f"), ("b", "c")):
        assert code_of(code) != code_of(code.replace(*wrong))


def test_all_kernels_and_what_cuts_them_are_in_the_digest():
    kernels = PAGE.parents[1] / "kernels"
    files = [*compiled_files()]
    jitted = [f for f in kernels.glob("*.py") if "@triton.jit" in f.read_text("utf-8")]
    assert {*jitted, *kernels.glob("*tiling.py"), kernels / "gpu.py"} <= {*files}
    assert {f.stem for f in files} >= {"ahead_of_time", "compile_cases", "compile_cases_fused"}


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_the_page_has_all_kernels_without_spills(page, architecture):
    rows = table(page, architecture)
    assert {label for label, *_ in rows} == cases_of(architecture).keys()
    assert {spills for *_, spills, _, _ in rows} == {"0"}


def test_tall_attention_tiles_use_the_warpgroups_of_hopper(page):
    rows = table(page, "sm_90")
    tall = [cells for cells in rows if cells[2].startswith(("64 rows", "128 rows"))]
    assert len(tall) >= 10
    assert all("HGMMA" in matrix for *_, matrix in tall)
    assert with_low_tiles(page) == page


def test_the_floors_are_those_of_the_cost_model(page):
    assert with_floors(page) == page


@pytest.mark.slow
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_attention_and_experts_compile_to_what_the_page_says(page, architecture):
    labels = [label for label in cases_of(architecture) if label not in FUSED_CASES]
    reports = compile_all(architecture, labels)
    assert [*dict.fromkeys(report["label"] for report in reports)] == labels
    assert not [found for report in reports for found in findings(architecture, report)]
    if f"Triton {triton.__version__} for" in page:  # another version allocates otherwise
        assert not [*differences(page, architecture, reports)]
