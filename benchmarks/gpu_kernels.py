"""How close each kernel comes to what the device copies and multiplies in the same process."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from gpu_inputs import attention_inputs, choices, experts, head_steps
from gpu_timing import Clock, Result
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from assembler.kernels.attention_options import AttentionOptions
from assembler.kernels.cost import (
    AttentionShape,
    Cost,
    Roof,
    grouped_mlp_cost,
    paged_attention_cost,
    rowwise_cost,
    store_kv_cost,
)
from assembler.kernels.gating import Gating

HEADS = AttentionShape(heads=32, kv_heads=8, head_dim=128)  # Qwen3-8B's
CONTEXTS = [1024, 2048, 4096, 8192, 16384, 32768]
BATCHES = [1, 3, 4, 16, 24, 40, 64, 96, 256]
RAGGED = [32768] + [1024] * 63  # one long context that the others must not wait for
DECODE_TARGET, PREFILL_TARGET, ROW_TARGET, EXPERTS_TARGET = 0.85, 0.60, 0.80, 0.70
NO_ROOF = Roof("nothing measured", 1.0, 1.0)


def kernel_rows(clock: Clock, roof: Roof | None) -> Iterator[Result]:
    """All kernels; `roof` None in a smoke run."""
    roof = roof or NO_ROOF
    yield from _decode(clock, roof)
    yield from _prefill(clock)
    yield from _row_kernels(clock, roof)
    yield from _experts(clock, roof)
    yield from _sampling(clock, roof)


def _decode(clock: Clock, roof: Roof) -> Iterator[Result]:
    from assembler.kernels.paged_attention_triton import paged_attention_triton

    shape = AttentionShape(4, 2, 16) if clock.smoke else HEADS
    options = AttentionOptions(shape.head_dim**-0.5)
    if clock.smoke:
        steps = {"2 x 33": [33, 33], "ragged": [40, 3]}
    else:
        steps = {f"{b} x {context}": [context] * b for context in CONTEXTS for b in BATCHES}
        steps["1 x 32768 and 63 x 1024"] = RAGGED
    for name, lens in steps.items():
        queries = [1] * len(lens)
        inputs = attention_inputs(shape, queries, lens, clock.device)
        yield clock.compare(
            "decode attention",
            name,
            lambda i=inputs: paged_attention_triton(i.q, i.k_cache, i.v_cache, i.batch, options),
            paged_attention_cost(shape, queries, lens),
            roof,
            target=DECODE_TARGET,
        )


def _prefill(clock: Clock) -> Iterator[Result]:
    """Against the fastest of torch's own attentions over the same keys, laid out in a row."""
    from assembler.kernels.paged_attention_triton import paged_attention_triton

    shape = AttentionShape(4, 2, 16) if clock.smoke else HEADS
    length = 40 if clock.smoke else 8192
    inputs = attention_inputs(shape, [length], [length], clock.device)
    options = AttentionOptions(shape.head_dim**-0.5)
    ours = clock.seconds(
        lambda: paged_attention_triton(
            inputs.q, inputs.k_cache, inputs.v_cache, inputs.batch, options
        )
    )
    name, best = _best_sdpa(clock, shape, length)
    if ours is None or best is None:
        yield Result("prefill attention", f"1 x {length}, causal", note="ran")
        return
    flops = paged_attention_cost(shape, [length], [length]).flops
    yield Result(
        "prefill attention",
        f"1 x {length}, causal",
        ours,
        best / ours,
        f"SDPA {name}",
        PREFILL_TARGET,
        f"{flops / ours / 1e12:.0f} TFLOP/s; {name} {flops / best / 1e12:.0f}",
    )


def _best_sdpa(clock: Clock, shape: AttentionShape, length: int) -> tuple[str, float | None]:
    """The fastest backend of torch and its seconds; key/value heads are repeated beforehand."""
    group = shape.heads // shape.kv_heads
    q = torch.randn(1, shape.heads, length, shape.head_dim, device=clock.device).bfloat16()
    k, v = (torch.randn(1, shape.kv_heads, length, shape.head_dim) for _ in range(2))
    k, v = (t.to(q).repeat_interleave(group, 1) for t in (k, v))
    if clock.smoke:
        F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return "", None
    found = []
    for backend in (
        SDPBackend.CUDNN_ATTENTION,
        SDPBackend.FLASH_ATTENTION,
        SDPBackend.EFFICIENT_ATTENTION,
    ):
        try:
            with sdpa_kernel(backend):
                seconds = clock.seconds(
                    lambda: F.scaled_dot_product_attention(q, k, v, is_causal=True)
                )
        except RuntimeError:  # not for this device, or not in this build
            continue
        found.append((seconds, backend.name.lower()))
    seconds, name = min(found)
    return name, seconds


def _row_kernels(clock: Clock, roof: Roof) -> Iterator[Result]:
    """What goes through memory once: norms, activations, rotation and storing."""
    from assembler.kernels import norms_triton
    from assembler.kernels.gated_triton import gated_triton
    from assembler.kernels.rope_kv_triton import rope_store_kv_triton
    from assembler.kernels.store_kv_triton import store_kv_triton

    tokens, width = (3, 64) if clock.smoke else (8192, 4096)
    shape = AttentionShape(4, 2, 16) if clock.smoke else HEADS
    device, dtype = clock.device, torch.bfloat16
    x, y = (torch.randn(tokens, width, device=device).to(dtype) for _ in range(2))
    weight = torch.rand(width, device=device).to(dtype)
    inputs = attention_inputs(shape, [tokens], [tokens], device)
    caches, slots = (inputs.k_cache, inputs.v_cache), inputs.batch.slot_mapping
    k, v = (
        torch.randn(tokens, shape.kv_heads, shape.head_dim, device=device).to(dtype)
        for _ in range(2)
    )
    steps = head_steps(shape, tokens, k)
    turned = rowwise_cost(tokens, shape.heads * shape.head_dim, 2, reads=1, writes=1)
    cases = {
        "add + RMSNorm": (
            lambda: norms_triton.add_rms_norm(x, y, weight, 1e-6, 0),
            rowwise_cost(tokens, width, 2, reads=2, writes=2),
        ),
        "SwiGLU": (
            lambda: gated_triton(x, y, "silu"),
            rowwise_cost(tokens, width, 2, reads=2, writes=1),
        ),
        "store_kv": (
            lambda: store_kv_triton(k, v, *caches, slots),
            store_kv_cost(shape, tokens),
        ),
        "QK-norm + RoPE + store_kv": (
            lambda: rope_store_kv_triton(inputs.q, k, v, *caches, slots, steps),
            turned + store_kv_cost(shape, tokens),
        ),
    }
    for name, (run, cost) in cases.items():
        label = f"{name}, {tokens} tokens"
        yield clock.compare("rows", label, run, cost, roof, target=ROW_TARGET)


def _experts(clock: Clock, roof: Roof) -> Iterator[Result]:
    """Against dense products of torch of as many operations.

    Of few tokens the weights of the experts, which a dense product has no part of, are the bound:
    these stand beside a copy of as many bytes, and nothing is asked of them.
    """
    from assembler.kernels.grouped_mlp_triton import grouped_mlp_triton

    size = (4, 32, 16, 2) if clock.smoke else (128, 2048, 768, 8)  # Qwen3-30B-A3B's
    count, hidden, inner, top_k = size
    device, dtype = clock.device, torch.bfloat16
    stacked = experts(count, hidden, inner, device, dtype)
    up, down = stacked.gate_up[0].t(), stacked.down[0].t()
    gating = Gating("silu", F.silu)
    for tokens in [5] if clock.smoke else [64, 1024, 8192, 16384]:
        chosen, weights = choices(tokens, top_k, count, device)
        x = torch.randn(tokens, hidden, device=device).to(dtype)
        rows = torch.randn(tokens * top_k, hidden, device=device).to(dtype)
        cost = grouped_mlp_cost(tokens, top_k, count, hidden, inner)
        name = f"{tokens} tokens, {top_k} of {count}"

        def run(x: torch.Tensor = x, c: torch.Tensor = chosen, w: torch.Tensor = weights) -> None:
            grouped_mlp_triton(x, c, w, stacked, gating)

        if cost.bound(roof) == "memory":
            yield clock.compare("grouped GEMM", name, run, cost, roof)
            continue
        ours = clock.seconds(run)
        dense = clock.seconds(lambda rows=rows: (rows @ up)[:, :inner] @ down)
        if ours is None or dense is None:
            yield Result("grouped GEMM", name, note="ran")
            continue
        note = f"{cost.flops / ours / 1e12:.0f} TFLOP/s, {cost.bytes / ours / 1e12:.2f} TB/s"
        share = dense / ours
        yield Result(
            "grouped GEMM", name, ours, share, "torch.matmul", EXPERTS_TARGET, note,
            roof_share=cost.floor_seconds(roof) / ours,
        )  # fmt: skip


def _sampling(clock: Clock, roof: Roof) -> Iterator[Result]:
    from assembler.kernels.sampling_triton import sample_by_number

    rows, vocabulary = (2, 300) if clock.smoke else (256, 151936)
    logits = torch.randn(rows, vocabulary, device=clock.device)
    settings = [
        torch.full((rows,), number, device=clock.device, dtype=dtype)
        for number, dtype in (
            (0.7, torch.float32),
            (50, torch.int32),
            (0.9, torch.float32),
            (-torch.inf, torch.float32),
            (0.3, torch.float32),
        )
    ]
    yield clock.compare(
        "sampling",
        f"top-k, top-p, {rows} rows",
        lambda: sample_by_number(logits, *settings),
        Cost(logits.numel() * 4, 0),
        roof,
    )
