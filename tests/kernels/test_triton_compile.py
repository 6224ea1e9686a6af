"""Every Triton kernel compiles for GPUs that are not here; docs/kernels.md says what it takes."""

from __future__ import annotations

import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import triton
from ahead_of_time import cases_of

sys.path.append(str(Path(__file__).resolve().parents[1]))
from docs_kernels import ARCHITECTURES, HEADER, PAGE, compile_all, findings, row, with_floors

# The tilings that differ most; all cases are compiled when the page is written.
SAMPLE = {
    "sm_80": ["prefill 4 × 128, fp8 cache"],
    "sm_90": ["decode 4 × 128, split", "prefill 4 × 128", "decode latent 128 × 576/512"],
    "sm_100": ["prefill 4 × 128"],
    "gfx942": ["prefill 4 × 128, window", "store_kv, bf16 to fp8"],
}


def table(architecture: str) -> list[list[str]]:
    """The cells of the page's table."""
    _, rest = PAGE.read_text("utf-8").split(f"### {architecture}\n")
    rows = rest.split(HEADER)[1].split("\n\n")[0].splitlines()
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in rows]


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_the_page_has_all_kernels_without_spills(architecture):
    rows = table(architecture)
    assert {label for label, *_ in rows} == cases_of(architecture).keys()
    assert {spills for *_, spills, _, _ in rows} == {"0"}


def test_tall_attention_tiles_use_the_warpgroups_of_hopper():
    tall = [cells for cells in table("sm_90") if cells[2].startswith(("64 rows", "128 rows"))]
    assert len(tall) >= 10
    assert all("HGMMA" in matrix for *_, matrix in tall)


def test_the_floors_are_those_of_the_cost_model():
    page = PAGE.read_text("utf-8")
    assert with_floors(page) == page


@pytest.mark.slow
def test_a_sample_compiles_to_what_the_page_says():
    with ThreadPoolExecutor(2) as pool:
        reports = dict(zip(SAMPLE, pool.map(compile_all, SAMPLE, SAMPLE.values()), strict=True))
    page = PAGE.read_text("utf-8")
    for architecture, compiled in reports.items():
        assert [
            r["label"] for r in compiled if "attention" in r["kernel"] or "store" in r["kernel"]
        ]
        for report in compiled:
            assert not list(findings(architecture, report))
            if f"Triton {triton.__version__}" in page:  # another version allocates otherwise
                assert row(report) in page
