"""The Triton kernels compile for real devices, and how their work is cut."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from assembler.kernels.paged_attention_tiling import choose_splits, choose_tiling

KIB = 1024


@pytest.mark.slow
@pytest.mark.parametrize(
    ("backend", "architecture", "shared_memory"),
    [
        pytest.param("cuda", "80", 163 * KIB, id="sm_80"),
        pytest.param("cuda", "90", 227 * KIB, id="sm_90"),
        pytest.param("hip", "gfx942", 64 * KIB, id="gfx942"),
    ],
)
def test_compiles_ahead_of_time(backend, architecture, shared_memory, tmp_path):
    environment = os.environ | {
        "TRITON_INTERPRET": "0",
        "TRITON_CACHE_DIR": str(tmp_path),
        "PYTHONPATH": os.pathsep.join(sys.path),
    }
    script = Path(__file__).with_name("ahead_of_time.py")
    done = subprocess.run(
        [sys.executable, "-W", "error", str(script), backend, architecture],
        capture_output=True,
        text=True,
        env=environment,
    )
    assert done.returncode == 0, done.stderr
    reports = [json.loads(line) for line in done.stdout.splitlines()]
    store, decode, merge, prefill, exact, *more, exact_latent = reports[:10]
    experts = reports[10:]
    assert [store["kernel"], decode["kernel"], merge["kernel"], prefill["kernel"]] == [
        "store_kv_kernel",
        "paged_attention_kernel",
        "merge_splits_kernel",
        "paged_attention_kernel",
    ]
    assert all(kernel["matrix_instructions"] for kernel in (decode, prefill, *more))
    assert {kernel["kernel"] for kernel in (*more, exact_latent)} == {"paged_attention_kernel"}
    assert [k["kernel"] for k in experts] == 3 * ["experts_up_kernel", "experts_down_kernel"]
    assert all(kernel["matrix_instructions"] for kernel in experts[:4])
    if backend == "cuda":  # tensor cores would round float32 to TF32; AMD's multiply it exactly
        assert all(
            kernel["matrix_instructions"] == 0 for kernel in (exact, exact_latent, *experts[4:])
        )
    for kernel in reports:
        assert kernel["shared"] <= shared_memory


@pytest.mark.parametrize("itemsize", [2, 4])
@pytest.mark.parametrize("max_seqlen_q", [1, 2, 500])
@pytest.mark.parametrize("group", [1, 3, 8, 71])
@pytest.mark.parametrize("head_dim", [8, 40, 128, 256])
def test_tiles_hold_the_work(group, head_dim, itemsize, max_seqlen_q):
    tiling = choose_tiling(group, head_dim, head_dim, itemsize, max_seqlen_q)
    assert group == tiling.HEADS or (group, head_dim) == (71, 256)  # two programs share these
    assert 1 <= tiling.BLOCK_Q * tiling.HEADS <= tiling.BLOCK_M
    assert head_dim <= tiling.BLOCK_D == tiling.BLOCK_DV
    for size in (tiling.BLOCK_M, tiling.BLOCK_D, tiling.TILE):
        assert size >= 16 and size & (size - 1) == 0


@pytest.mark.parametrize(("group", "heads"), [(16, 16), (32, 32), (40, 20), (128, 32)])
def test_many_heads_of_wide_values_share_a_group(group, heads):
    for max_seqlen_q in (1, 500):
        tiling = choose_tiling(group, 64, 512, 2, max_seqlen_q)
        assert tiling.HEADS == heads <= tiling.BLOCK_M
        assert tiling.BLOCK_M * tiling.BLOCK_DV <= 1 << 14


@pytest.mark.parametrize(
    ("programs", "max_keys", "splits"),
    [
        (8, 100_000, 32),  # one sequence: the device is filled
        (8, 2000, 4),  # ... but no split gets less than 256 keys
        (8, 100, 1),
        (64, 100_000, 4),
        (300, 100_000, 1),  # sequences enough
    ],
)
def test_decode_is_split_to_fill_the_device(programs, max_keys, splits):
    assert choose_splits(programs, max_keys, num_processors=132) == splits
