"""Every kernel against its torch reference, on the device; the reference computes in float64.

A check gives the largest error and the largest one that rounding explains.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

import torch
from gpu_inputs import AttentionInputs, attention_inputs, choices, experts, head_steps
from torch.nn import functional as F

from assembler.kernels.attention_options import AttentionOptions
from assembler.kernels.cost import AttentionShape
from assembler.kernels.dispatch import flash_problems
from assembler.kernels.flash_attention import AttentionUse, FlashAttention
from assembler.kernels.gating import Gating, gated_torch
from assembler.kernels.grouped_mlp_torch import grouped_mlp_torch
from assembler.kernels.head_steps import HeadSteps, rope_store_kv_torch
from assembler.kernels.norms_torch import layer_norm_torch, rms_norm_torch
from assembler.kernels.paged_attention_torch import paged_attention_torch
from assembler.kernels.sampling_torch import RowSettings
from assembler.kernels.store_kv_torch import store_kv_torch

Attend = Callable[..., torch.Tensor]  # as `paged_attention_torch`
Check = tuple[str, Callable[[], float], float]  # what, its largest error, the bound of that

TOLERANCE = {torch.bfloat16: 3e-2, torch.float16: 5e-3, torch.float32: 1e-4}
# Query lengths and contexts: decodes, prompts and chunks, alone and together.
STEPS = {
    "decode": ([1, 1, 1], [700, 1, 130]),
    "prefill": ([90, 40], [90, 170]),
    "mixed": ([1, 33, 1, 20], [300, 33, 17, 90]),
}
SMALL_STEPS = {"decode": ([1, 1], [19, 1]), "mixed": ([1, 5], [17, 9])}


def checks(device: torch.device, smoke: bool) -> Iterator[Check]:
    """All of them; a smoke run takes small shapes and one dtype."""
    dtypes = [torch.float32] if smoke else [torch.bfloat16, torch.float16, torch.float32]
    for dtype in dtypes:
        yield from _attention_checks(device, dtype, smoke)
        yield from _flash_checks(device, dtype)
        tokens, width = (3, 48) if smoke else (257, 4096)
        yield from _row_checks(device, dtype, tokens, width)
        yield from _head_checks(device, dtype, 3 if smoke else 130)
        yield from _expert_checks(device, dtype, smoke)
    yield from _sampling_checks(device, smoke)


def _attention_checks(device: torch.device, dtype: torch.dtype, smoke: bool) -> Iterator[Check]:
    """All options at one width, all widths plain; other dtypes than bfloat16 as they come.

    Each is a few kernels to compile, seconds each: the full grid runs in the interpreter's tests.
    """
    latent = AttentionShape(8, 1, 48 if smoke else 576, 32 if smoke else 512, latent=True)
    cases = [("latent", latent, AttentionOptions(0.05, value_dim=latent.value_dim))]
    for dim in [16] if smoke else [128, 64, 80, 96, 256]:
        shape = AttentionShape(heads=8, kv_heads=2, head_dim=dim)
        for kind, options in _options(shape, device).items():
            plain = kind == "plain" and (dim == 128 or dtype == torch.bfloat16)
            if smoke or plain or (dim == 128 and dtype == torch.bfloat16):
                cases.append((f"{kind}, D={dim}", shape, options))
    attend = _paged_attention()
    for about, shape, options in cases:
        for name, lens in (SMALL_STEPS if smoke else STEPS).items():
            inputs = attention_inputs(shape, *lens, device, dtype)
            check = partial(_attention_error, attend, inputs, options)
            yield f"attention {name}, {about}, {_name(dtype)}", check, TOLERANCE[dtype]


def _paged_attention() -> Attend:
    # Triton reads its settings when it is imported, which this module's importers may come before.
    from assembler.kernels.paged_attention_triton import paged_attention_triton

    return paged_attention_triton


def _flash_checks(device: torch.device, dtype: torch.dtype) -> Iterator[Check]:
    """The package flash-attn, where it is installed."""
    shape = AttentionShape(heads=8, kv_heads=2, head_dim=128)
    for kind, options in _options(shape, device).items():
        use = AttentionUse(options, 128, 128, False, dtype, dtype, page_size=256)
        if flash_problems(device, [use]):
            continue
        attend = FlashAttention().attend
        for name, lens in STEPS.items():
            inputs = attention_inputs(shape, *lens, device, dtype, page_size=256)
            check = partial(_attention_error, attend, inputs, options)
            yield f"flash_attn {name}, {kind}, {_name(dtype)}", check, TOLERANCE[dtype]


def _options(shape: AttentionShape, device: torch.device) -> dict[str, AttentionOptions]:
    scale = shape.head_dim**-0.5
    heads = torch.linspace(0.1, 0.8, shape.heads, device=device)
    return {
        "plain": AttentionOptions(scale),
        "window": AttentionOptions(scale, window=7),
        "chunk, softcap": AttentionOptions(scale, chunk=32, softcap=20.0),
        "sinks": AttentionOptions(scale, sinks=heads),
        "alibi": AttentionOptions(scale, alibi_slopes=heads),
    }


def _attention_error(attend: Attend, inputs: AttentionInputs, options: AttentionOptions) -> float:
    got = attend(inputs.q, inputs.k_cache, inputs.v_cache, inputs.batch, options)
    exact = inputs.to(torch.float64)
    wanted = paged_attention_torch(exact.q, exact.k_cache, exact.v_cache, exact.batch, options)
    return _error(got, wanted)


def _row_checks(
    device: torch.device, dtype: torch.dtype, tokens: int, width: int
) -> Iterator[Check]:
    from assembler.kernels import norms_triton
    from assembler.kernels.embedding_triton import embed_triton
    from assembler.kernels.gated_triton import gated_triton

    x, residual, weight, bias = (
        torch.randn(*shape, device=device).to(dtype)
        for shape in ((tokens, width), (tokens, width), (width,), (width,))
    )
    total = (x + residual).double()
    exact = [t.double() for t in (weight, bias)]
    pairs: dict[str, Callable[[], tuple[torch.Tensor, torch.Tensor]]] = {
        "add + RMSNorm": lambda: (
            norms_triton.add_rms_norm(x, residual, weight, 1e-6, 1)[0],
            rms_norm_torch(total, exact[0], 1e-6, 1),
        ),
        "add + LayerNorm": lambda: (
            norms_triton.add_layer_norm(x, residual, weight, bias, 1e-6, 0)[0],
            layer_norm_torch(total, *exact, 1e-6, 0),
        ),
        "SwiGLU": lambda: (
            gated_triton(x, residual, "silu"),
            gated_torch(x.double(), residual.double(), F.silu),
        ),
        "embedding": lambda: (
            embed_triton(torch.arange(tokens, device=device) % tokens, x, 2.0),
            2.0 * x.double(),
        ),
    }
    for name, pair in pairs.items():
        yield f"{name}, {_name(dtype)}", lambda pair=pair: _error(*pair()), TOLERANCE[dtype]


def _head_checks(device: torch.device, dtype: torch.dtype, tokens: int) -> Iterator[Check]:
    from assembler.kernels.rope_kv_triton import rope_store_kv_triton
    from assembler.kernels.store_kv_triton import store_kv_triton

    shape = AttentionShape(heads=4, kv_heads=2, head_dim=64)
    inputs = attention_inputs(shape, [tokens], [tokens], device, dtype)
    slots = inputs.batch.slot_mapping.clone()
    slots[0] = -1
    k, v = (torch.randn(tokens, 2, 64, device=device).to(dtype) for _ in range(2))

    def run(store: Callable[..., torch.Tensor | None], *arguments: HeadSteps) -> torch.Tensor:
        """All that it wrote and gave, in a row."""
        caches = [torch.zeros_like(inputs.k_cache) for _ in range(2)]
        heads = (inputs.q, k, v) if arguments else (k, v)
        out = store(*heads, *caches, slots, *arguments)
        return torch.cat([t.flatten() for t in (*caches, out) if t is not None])

    steps = head_steps(shape, tokens, k)
    yield (
        f"store_kv, {_name(dtype)}",
        lambda: _error(run(store_kv_triton), run(store_kv_torch)),
        0.0,
    )
    yield (
        f"QK-norm + RoPE + store_kv, {_name(dtype)}",
        lambda: _error(run(rope_store_kv_triton, steps), run(rope_store_kv_torch, steps)),
        TOLERANCE[dtype],
    )


def _expert_checks(device: torch.device, dtype: torch.dtype, smoke: bool) -> Iterator[Check]:
    from assembler.kernels.grouped_mlp_triton import grouped_mlp_triton

    tokens, count, hidden, inner = (5, 4, 32, 16) if smoke else (300, 32, 512, 256)
    stacked = experts(count, hidden, inner, device, dtype)
    chosen, weights = choices(tokens, 2, count, device)
    x = torch.randn(tokens, hidden, device=device).to(dtype)
    gating = Gating("silu", F.silu)
    exact = type(stacked)(stacked.gate_up.double(), stacked.down.double())
    yield (
        f"grouped MLP, {_name(dtype)}",
        lambda: _error(
            grouped_mlp_triton(x, chosen, weights, stacked, gating),
            grouped_mlp_torch(x.double(), chosen, weights.double(), exact, gating),
        ),
        TOLERANCE[dtype],
    )


def _sampling_checks(device: torch.device, smoke: bool) -> Iterator[Check]:
    from assembler.kernels.sampling_triton import sample_by_number

    rows, vocabulary = (3, 300) if smoke else (64, 151936)
    logits = torch.randn(rows, vocabulary, device=device)

    def column(number: float, dtype: torch.dtype = torch.float32) -> torch.Tensor:
        return torch.full((rows,), number, dtype=dtype, device=device)

    def wrong(temperature: float, top_k: int) -> float:
        """Rows whose token is not the likeliest, the only one that may be drawn."""
        settings = RowSettings(
            column(temperature), column(top_k, torch.int32), column(1.0), column(-torch.inf)
        )
        drawn = sample_by_number(logits, *settings, column(0.5))
        return float((drawn != logits.argmax(-1)).sum())

    yield "sampling, greedy", lambda: wrong(0.0, 0), 0.0
    yield "sampling, top-k of 1", lambda: wrong(0.7, 1), 0.0


def _error(got: torch.Tensor, wanted: torch.Tensor) -> float:
    """The largest difference, of large numbers in proportion; infinite where `got` holds NaN."""
    wanted = wanted.double()
    difference = (got.double() - wanted).abs() / (1 + wanted.abs())
    return float(difference.nan_to_num(torch.inf).max())


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
