"""The generated tables of docs/kernels.md: what each Triton kernel takes of each kind of GPU.

    python tests/docs_kernels.py

compiles every kernel for GPUs that need not be here, writes the tables into the page and fails if a
kernel keeps registers in memory, takes more shared memory than there is, or multiplies without the
matrix instructions that it is made for. The page keeps a digest of the code that it was made from,
by which a test tells that the code has changed since.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import version

from kernel_sources import ROOT, WORKER, digest

from assembler.kernels.cost import (
    H200,
    ROOFS,
    AttentionShape,
    Cost,
    grouped_mlp_cost,
    linear_cost,
    paged_attention_cost,
    routing_cost,
    rowwise_cost,
    store_kv_cost,
)

PAGE = ROOT / "docs" / "kernels.md"
ARCHITECTURES = ("sm_80", "sm_90", "sm_100", "gfx942")
HEADER = (
    "| what runs | kernel | tile, warps, stages | registers | spills | shared KiB | matrix |\n"
    "| --- | --- | --- | --- | --- | --- | --- |\n"
)
FLOORS = (
    "| call | MB | GFLOP | H200 | H100 SXM | A100 SXM 80 GB | MI300X | bound on H200 |\n"
    "| --- | --- | --- | --- | --- | --- | --- | --- |\n"
)
LOW_TILES = "Prefill by HMMA on sm_90, its tiles having fewer rows than wgmma takes:"
Report = dict[str, object]


def compile_all(architecture: str, labels: Iterable[str] = ()) -> list[Report]:
    """What `ahead_of_time.py` reports for the cases of these labels (all, if there are none)."""
    environment = os.environ | {"TRITON_INTERPRET": "0", "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(
        [sys.executable, "-W", "error", str(WORKER), architecture, *labels],
        capture_output=True,
        text=True,
        env=environment,
    )
    if done.returncode:
        raise RuntimeError(f"{architecture}: {done.stderr}")
    return [json.loads(line) for line in done.stdout.splitlines()]


def cells(report: Report) -> list[str]:
    """The cells of one compiled kernel in the table."""
    matrix = ", ".join(f"{count} {name}" for name, count in sorted(report["matrix"].items()))
    found = (
        report["label"],
        f"`{report['kernel']}`",
        report["launch"],
        report["registers"],
        report["spills"],
        f"{report['shared'] / 1024:.3g}",
        matrix or "–",
    )
    return [*map(str, found)]


def differences(page: str, architecture: str, reports: list[Report]) -> Iterator[str]:
    """Rows of these kernels that the page does not have, or has otherwise.

    LLVM, which compiles for AMD, takes some registers more or less from run to run.
    """
    said = table(page, architecture)
    share = 0.05 if architecture.startswith("gfx") else 0.0
    for report in reports:
        *wanted, registers, spills, shared, matrix = cells(report)
        slack = share * int(registers)
        if not any(
            [*paged[:3], *paged[4:]] == [*wanted, spills, shared, matrix]
            and abs(int(paged[3]) - int(registers)) <= slack
            for paged in said
        ):
            yield " | ".join(cells(report))


def findings(architecture: str, report: Report) -> Iterator[str]:
    """What must not be of one compiled kernel."""
    name = f"{architecture}, {report['label']}, {report['kernel']}"
    if report["spills"]:
        yield f"{name}: {report['spills']} bytes of registers are kept in memory"
    if report["shared"] > report["shared_limit"]:
        yield f"{name}: takes {report['shared']} bytes of shared memory"
    wanted = report["wanted_matrix"]
    if wanted == "" and report["matrix"]:
        yield f"{name}: rounds float32 in {report['matrix']}"
    elif wanted and wanted not in report["matrix"]:
        yield f"{name}: no {wanted} in {report['matrix']}"


def floor_rows() -> str:
    """The rows of the table of floors."""
    heads = AttentionShape(heads=32, kv_heads=8, head_dim=128)
    eight = AttentionShape(heads=32, kv_heads=8, head_dim=128, cache_itemsize=1)
    latent = AttentionShape(128, 1, head_dim=576, head_dim_v=512, latent=True)
    attend = paged_attention_cost
    calls = {
        "decode 1 × 32k, 32/8 heads of 128": attend(heads, [1], [32768]),
        "decode 64 × 4k": attend(heads, [1] * 64, [4096] * 64),
        "decode 64 × 4k, fp8 cache": attend(eight, [1] * 64, [4096] * 64),
        "decode 64 × 4k, window 1k": attend(heads, [1] * 64, [4096] * 64, 1024),
        "decode 256 × 1k": attend(heads, [1] * 256, [1024] * 256),
        "decode 64 × 4k, latent, 128 heads": attend(latent, [1] * 64, [4096] * 64),
        "prefill 8k": attend(heads, [8192], [8192]),
        "prefill 2k behind 30k": attend(heads, [2048], [32768]),
        "store_kv, 2048 tokens": store_kv_cost(heads, 2048),
        "residual + RMSNorm, 2048 × 4096": rowwise_cost(2048, 4096, 2, reads=2, writes=2),
        "gated activation, 2048 × 12288": rowwise_cost(2048, 12288, 2, reads=2, writes=1),
        "experts, 64 tokens, 8 of 128, 2048 × 768": grouped_mlp_cost(64, 8, 128, 2048, 768),
        "experts, 4096 tokens, 8 of 128, 2048 × 768": grouped_mlp_cost(4096, 8, 128, 2048, 768),
        "routing, 4096 tokens, 8 of 128": routing_cost(4096, 8, 128),
        "linear, 1 × 4096 × 12288": linear_cost(1, 4096, 12288),
    }
    return "".join(_floor_row(name, cost) for name, cost in calls.items())


def _floor_row(name: str, cost: Cost) -> str:
    times = (cost.floor_seconds(roof) * 1e6 for roof in ROOFS)
    numbers = map(_short, (cost.bytes / 1e6, cost.flops / 1e9, *times))
    return f"| {name} | {' | '.join(numbers)} | {cost.bound(H200)} |\n"


def _short(number: float) -> str:
    return (
        f"{number:,.0f}" if number >= 100 else f"{number:.2g}" if number < 10 else f"{number:.3g}"
    )


def with_floors(page: str) -> str:
    """The text of the page with the table of floors as it should be."""
    return _replaced(page, "", FLOORS, floor_rows())


def with_tables(page: str, reports: dict[str, list[Report]]) -> str:
    """The text of the page with the tables of compiled kernels as they should be."""
    for architecture, compiled in reports.items():
        rows = "".join(f"| {' | '.join(cells(report))} |\n" for report in compiled)
        page = _replaced(page, f"### {architecture}\n", HEADER, rows)
    page = re.sub(r"Triton [\w.]+ for", f"Triton {version('triton')} for", page)
    return with_low_tiles(page)


def table(page: str, architecture: str) -> list[list[str]]:
    """The cells of the table of an architecture."""
    _, rest = page.split(f"### {architecture}\n")
    rows = rest.split(HEADER)[1].split("\n\n")[0].splitlines()
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in rows]


def with_low_tiles(page: str) -> str:
    """The text of the page with the line that names what Hopper's wgmma does not multiply."""
    low = [
        f"{label} ({tile.split(' rows')[0]} rows)"
        for label, _, tile, _, _, _, matrix in table(page, "sm_90")
        if label.startswith("prefill") and matrix.endswith(" HMMA")
    ]
    return re.sub(f"{LOW_TILES}.*", f"{LOW_TILES} {', '.join(low) or 'none'}.", page)


def with_digest(page: str) -> str:
    """The text of the page with the digest of the code as it is now."""
    return re.sub(r"compiled from: \w+", f"compiled from: {digest()}", page)


def _replaced(page: str, title: str, header: str, rows: str) -> str:
    """The page with these rows under the first such header behind the title."""
    start = page.index(header, page.index(title)) + len(header)
    end = page.index("\n", start) if page[start] == "\n" else page.index("\n\n", start) + 1
    return page[:start] + rows + page[end:]


def main() -> int:
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        reports = dict(zip(ARCHITECTURES, pool.map(compile_all, ARCHITECTURES), strict=True))
    page = with_tables(PAGE.read_text("utf-8"), reports)
    PAGE.write_text(with_digest(with_floors(page)), "utf-8")
    found = [f for a, rows in reports.items() for report in rows for f in findings(a, report)]
    print("\n".join(found) or f"{sum(map(len, reports.values()))} kernels compiled, all as wanted")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
