"""Calls of the kernels of a mixture of experts at the shapes of real models, for compiling.

Run them where launches are recorded (see `recorded_launches`), not where Triton interprets. Tiles
depend on the GPU, so these cases are asked for by its architecture.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial

import torch

from assembler.kernels.expert_weights import ExpertWeights
from assembler.kernels.gating import Gating
from assembler.kernels.gpu import GPU, GPUS
from assembler.kernels.grouped_mlp_tiling import choose_tiling
from assembler.kernels.grouped_mlp_triton import grouped_mlp_triton
from assembler.kernels.routing import ChoiceRule
from assembler.kernels.routing_triton import run_choice

BF16, FP32 = torch.bfloat16, torch.float32


def run_experts(
    gpu: GPU,
    tokens: int,
    activation: str,
    *,
    hidden: int = 2048,
    inner: int = 1408,
    dtype: torch.dtype = BF16,
    bias: bool = True,
    **form: float,
) -> None:
    """A mixture of 64 experts, 8 of them a token."""
    leaves = [(64, 2 * inner, hidden), (64, hidden, inner), (64, 2 * inner), (64, hidden)]
    weights = ExpertWeights(
        *(torch.empty(leaf, dtype=dtype) for leaf in leaves[: 4 if bias else 2])
    )
    x, chosen = torch.empty(tokens, hidden, dtype=dtype), torch.arange(8).repeat(tokens, 1)
    gating = Gating(name=activation, act=torch.sigmoid, **form)
    tiling = choose_tiling(8 * tokens, 64, x.element_size(), gpu)
    grouped_mlp_triton(x, chosen, torch.empty(tokens, 8), weights, gating, tiling=tiling)


def choose(num_experts: int, top_k: int, bias: bool, **rule: object) -> None:
    """A router of so many experts, over logits in bfloat16, or in float32 with a bias."""
    logits = torch.empty(5, num_experts, dtype=FP32 if bias else BF16)
    form = ChoiceRule(top_k, softmax=not bias, normalise=True, **rule)
    run_choice(logits, torch.empty(num_experts) if bias else None, form)


def expert_cases(architecture: str) -> Mapping[str, Callable[[], None]]:
    """What is called, by what a report calls it; every distinct tiling is among them."""
    run = partial(run_experts, GPUS[architecture])
    return {
        "router, 8 of 128, softmax": partial(choose, 128, 8, False),
        "router, 10 of 512, softmax": partial(choose, 512, 10, False),
        "router, 8 of 256, 4 of 8 groups, sigmoid": partial(
            choose, 256, 8, True, groups=8, top_groups=4, group_score="top2", scale=2.5
        ),
        "router, 6 of 160, 3 of 8 groups, softmax": partial(
            choose, 160, 6, False, groups=8, top_groups=3
        ),
        "experts, 1 token, silu": partial(run, 1, "silu"),
        "experts, 64 tokens, clamped": partial(
            run, 64, "quick_gelu", hidden=2880, inner=2880, limit=7.0, up_offset=1.0
        ),
        "experts, 200 tokens, silu": partial(run, 200, "silu"),
        "experts, 500 tokens, silu": partial(run, 500, "silu"),
        "experts, 4096 tokens, silu": partial(run, 4096, "silu", bias=False),
        "experts, 4096 tokens, clamped": partial(
            run, 4096, "quick_gelu", hidden=2880, inner=2880, limit=7.0, up_offset=1.0
        ),
        "experts, 64 tokens, gelu, fp32": partial(run, 64, "gelu", dtype=FP32),
        "experts, 4096 tokens, gelu, fp32": partial(run, 4096, "gelu", dtype=FP32),
    }
