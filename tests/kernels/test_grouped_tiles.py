"""The tiles of the experts' products: those that GPUs take, and which implementation is chosen."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from expert_inputs import by_definition, gating_of, random_case
from test_fused_choice import on_gpu

from assembler.kernels import fused
from assembler.kernels.expert_weights import ExpertWeights
from assembler.kernels.gpu import GPUS
from assembler.kernels.grouped_mlp import kernel_for
from assembler.kernels.grouped_mlp_meta import grouped_mlp_meta
from assembler.kernels.grouped_mlp_tiling import Tiling, choose_tiling
from assembler.kernels.grouped_mlp_torch import grouped_mlp_torch
from assembler.kernels.grouped_mlp_triton import grouped_mlp_triton
from assembler.kernels.operations import run_experts

SIZE = (5, 200, 136)  # experts, hidden, inner: several steps of each loop, none of them even
EVEN = (3, 256, 128)
SHARES = (1, 20, 50, 128)  # rows an expert, one for each height of a tile
SHIPPED = {
    tiling[:3]: tiling
    for gpu in GPUS.values()
    for tiling in (choose_tiling(64 * share, 64, 2, gpu) for share in SHARES)
}


def check(tiling: Tiling | None, tokens: int, dtype: torch.dtype, size=SIZE, **form) -> None:
    """Two experts a token against the definition; x lies in a wider row, with NaN around it."""
    x, chosen, weights, experts = random_case(tokens, 2, True, dtype, size)
    around = torch.full((tokens, size[1] + 9), torch.nan, dtype=dtype)
    around[:, 4:-5] = x
    gating = gating_of("silu", **form)
    got = grouped_mlp_triton(around[:, 4:-5], chosen, weights, experts, gating, tiling=tiling)
    want = by_definition(x, chosen, weights, experts, gating)
    assert got.dtype == dtype
    # Rounded are the gated features, what each expert makes of them and the sum.
    eps = 4 * torch.finfo(dtype).eps if dtype == torch.float32 else torch.finfo(dtype).eps
    torch.testing.assert_close(got.double(), want, rtol=eps, atol=3 * eps)


def test_there_is_a_tile_for_each_share():
    assert sorted(SHIPPED) == [(16, 64, 128), (32, 64, 128), (64, 128, 64), (128, 128, 64)]


@pytest.mark.slow
@pytest.mark.usefixtures("device_rounding", "poisoned_memory")
@pytest.mark.parametrize("shape", SHIPPED, ids=str)
def test_every_shipped_tiling_in_16_bits(shape):
    tokens = 330 if shape[0] == 128 else 5 * shape[0] // 2
    dtype = torch.float16 if shape[0] in (16, 128) else torch.bfloat16
    check(SHIPPED[shape], tokens, dtype, limit=1.5, up_offset=0.5)


@pytest.mark.slow
@pytest.mark.usefixtures("device_rounding", "poisoned_memory")
@pytest.mark.parametrize(("tokens", "dtype"), [(330, torch.float32), (300, torch.bfloat16)])
def test_hundreds_of_rows_as_they_are_cut(tokens, dtype):
    """660 rows of uneven widths in float32; widths that need no masks in 16 bits."""
    check(None, tokens, dtype, SIZE if dtype == torch.float32 else EVEN)


@pytest.mark.parametrize("gpu", GPUS.values(), ids=GPUS)
@pytest.mark.parametrize("itemsize", [2, 4])
@pytest.mark.parametrize("rows", [1, 8, 300, 1500, 3000, 8192, 100_000])
def test_tiles_fit_the_device(rows, itemsize, gpu):
    tiling = choose_tiling(rows, 64, itemsize, gpu)
    assert all(size >= 16 and size & (size - 1) == 0 for size in tiling[:3])
    stage = (tiling.BLOCK_M + tiling.BLOCK_N) * tiling.BLOCK_K * itemsize
    wide = itemsize == 2 and 0 < gpu.wide_matrix_rows <= tiling.BLOCK_M
    taken = stage * (tiling.num_stages - (not wide))
    assert taken <= gpu.shared_memory and tiling.num_stages >= 2
    assert (tiling[:2] == (128, 128)) is (itemsize == 2 and rows > 64 * 64)


@pytest.mark.parametrize(
    ("rows", "block_m"), [(1, 16), (16 * 64, 16), (17 * 64, 32), (127 * 64, 128)]
)
def test_tiles_are_as_tall_as_the_usual_share(rows, block_m):
    height = choose_tiling(rows, 64, 2, GPUS["sm_90"]).BLOCK_M
    assert height == block_m


def case_on_gpu(dtype=torch.bfloat16, **others: torch.Tensor):
    """What `kernel_for` is asked about, on a GPU that need not be here."""
    experts = ExpertWeights(on_gpu(4, 16, 8, dtype=dtype), on_gpu(4, 8, 8, dtype=dtype))
    x, weights = on_gpu(3, 8, dtype=dtype), on_gpu(3, 2, dtype=torch.float32)
    named = {name: others.pop(name) for name in list(others) if name in vars(experts)}
    return others.get("x", x), others.get("weights", weights), replace(experts, **named)


@pytest.mark.parametrize(
    ("others", "kernel"),
    [
        ({}, run_experts),
        ({"dtype": torch.float64}, grouped_mlp_torch),
        ({"down": on_gpu(4, 8, 8, dtype=torch.float32)}, grouped_mlp_torch),
        ({"down_bias": on_gpu(4, 8, dtype=torch.float32)}, grouped_mlp_torch),
        ({"weights": on_gpu(3, 2)}, grouped_mlp_torch),
        ({"weights": on_gpu(3, 2, dtype=torch.float32).requires_grad_()}, grouped_mlp_torch),
        ({"gate_up": on_gpu(4, 16, 8).requires_grad_()}, grouped_mlp_torch),
        ({"x": torch.empty(3, 8)}, grouped_mlp_torch),
        ({"x": torch.empty(3, 8, device="meta")}, grouped_mlp_meta),
    ],
    ids=["16", "64", "down", "bias", "weights", "gradient", "learned", "cpu", "meta"],
)
def test_the_rule_of_the_fused_kernels_holds(others, kernel, monkeypatch):
    assert kernel_for(*case_on_gpu(**others), "silu") is kernel
    monkeypatch.setattr(fused, "fused_choice", lambda: "never")
    never = grouped_mlp_meta if kernel is grouped_mlp_meta else grouped_mlp_torch
    assert kernel_for(*case_on_gpu(**others), "silu") is never


def test_what_the_kernel_does_not_know_goes_to_torch(monkeypatch):
    assert kernel_for(*case_on_gpu(), "one it does not know") is grouped_mlp_torch
    monkeypatch.setattr(fused, "fused_choice", lambda: "always")
    x, _, weights, experts = random_case(3, 2, bias=True)
    assert kernel_for(x, weights, experts, "silu") is run_experts
