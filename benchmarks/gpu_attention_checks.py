"""Paged attention on the device against the reference in float64."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial

import torch
from gpu_errors import TOLERANCE, Check, largest_error, name_of
from gpu_inputs import AttentionInputs, attention_inputs

from assembler.kernels.attention_options import AttentionOptions
from assembler.kernels.cost import AttentionShape
from assembler.kernels.dispatch import flash_problems
from assembler.kernels.flash_attention import AttentionUse, FlashAttention
from assembler.kernels.paged_attention_torch import paged_attention_torch

Attend = Callable[..., torch.Tensor]  # as `paged_attention_torch`
# Query lengths and contexts: decodes, prompts and chunks, alone and together.
STEPS = {
    "decode": ([1, 1, 1], [700, 1, 130]),
    "prefill": ([90, 40], [90, 170]),
    "mixed": ([1, 33, 1, 20], [300, 33, 17, 90]),
}
SMALL_STEPS = {"decode": ([1, 1], [19, 1]), "mixed": ([1, 5], [17, 9])}


@dataclass(frozen=True)
class Case:
    """One attention, whatever the step."""

    name: str
    shape: AttentionShape
    options: AttentionOptions
    page_size: int = 16


def attention_checks(
    device: torch.device, dtype: torch.dtype, smoke: bool, all_forms: bool
) -> Iterator[Check]:
    """Plain and latent attention in each dtype, the rest if `all_forms`."""
    # Triton reads its settings when it is imported, which this module's importers may come before.
    from assembler.kernels.paged_attention_triton import paged_attention_triton

    cases = [*_plain_cases(16 if smoke else 128, smoke)]
    if all_forms:
        cases += _forms(device, 16 if smoke else 128, smoke)
    for case in cases:
        for name, lens in (SMALL_STEPS if smoke else STEPS).items():
            inputs = attention_inputs(case.shape, *lens, device, dtype, case.page_size)
            check = partial(attention_error, paged_attention_triton, inputs, case.options)
            yield f"attention {name}, {case.name}, {name_of(dtype)}", check, TOLERANCE[dtype]


def _plain_cases(dim: int, smoke: bool) -> Iterator[Case]:
    latent = AttentionShape(8, 1, 48 if smoke else 576, 32 if smoke else 512, latent=True)
    yield Case("latent", latent, AttentionOptions(0.05, value_dim=latent.value_dim))
    yield Case(f"plain, D={dim}", AttentionShape(8, 2, dim), AttentionOptions(dim**-0.5))


def _forms(device: torch.device, dim: int, smoke: bool) -> Iterator[Case]:
    """All options, the other widths, groups and page sizes, and caches of 8 bits."""
    shape = AttentionShape(heads=8, kv_heads=2, head_dim=dim)
    for kind, options in head_options(shape, device).items():
        yield Case(f"{kind}, D={dim}", shape, options)
    plain = AttentionOptions(dim**-0.5)
    for page_size in (32, 64, 256):
        yield Case(f"pages of {page_size}", shape, plain, page_size)
    for heads, kv_heads in ((16, 2), (71, 1), (3, 3)):
        group = AttentionShape(heads, kv_heads, 16 if smoke else 64)
        yield Case(f"{heads} heads on {kv_heads}", group, AttentionOptions(0.125))
    widths = ((24, 40),) if smoke else ((64, 64), (80, 80), (96, 96), (160, 160), (256, 256))
    for width, width_v in (*widths, (40, 24) if smoke else (192, 128)):
        shape_w = AttentionShape(8, 2, width, width_v)
        yield Case(f"D={width}/{width_v}", shape_w, AttentionOptions(width**-0.5))
    eight = replace(shape, cache_itemsize=1)
    scales = {"k_scale": 0.25, "v_scale": 0.5}
    yield Case("8-bit cache", eight, AttentionOptions(dim**-0.5, **scales))
    latent = AttentionShape(8, 1, 48, 32, True) if smoke else AttentionShape(128, 1, 576, 512, True)
    about = {"value_dim": latent.value_dim, "k_scale": 0.25, "v_scale": 0.25}
    latent_eight = replace(latent, cache_itemsize=1)
    yield Case("latent 8-bit cache", latent_eight, AttentionOptions(0.05, **about))


def flash_checks(device: torch.device, dtype: torch.dtype) -> Iterator[Check]:
    """The package flash-attn, where it is installed."""
    shape = AttentionShape(heads=8, kv_heads=2, head_dim=128)
    plain = {"plain": AttentionOptions(128**-0.5)}
    for kind, options in {**plain, **head_options(shape, device)}.items():
        use = AttentionUse(options, 128, 128, False, dtype, dtype, page_size=256)
        if flash_problems(device, [use]):
            continue
        attend = FlashAttention().attend
        for name, lens in STEPS.items():
            inputs = attention_inputs(shape, *lens, device, dtype, page_size=256)
            check = partial(attention_error, attend, inputs, options)
            yield f"flash_attn {name}, {kind}, {name_of(dtype)}", check, TOLERANCE[dtype]


def head_options(shape: AttentionShape, device: torch.device) -> dict[str, AttentionOptions]:
    """Each option by itself, and all together."""
    scale = shape.head_dim**-0.5
    heads = torch.linspace(0.1, 0.8, shape.heads, device=device)
    both = {"sinks": heads, "alibi_slopes": heads}
    return {
        "window": AttentionOptions(scale, window=7),
        "chunk, softcap": AttentionOptions(scale, chunk=32, softcap=20.0),
        "sinks": AttentionOptions(scale, sinks=heads),
        "alibi": AttentionOptions(scale, alibi_slopes=heads),
        "alibi rounded": AttentionOptions(scale, alibi_slopes=heads, alibi_rounded=True),
        "all options": AttentionOptions(scale, window=70, chunk=96, softcap=20.0, **both),
    }


def attention_error(attend: Attend, inputs: AttentionInputs, options: AttentionOptions) -> float:
    """The largest error of `attend`; caches of 8 bits stand for the same numbers in both."""
    got = attend(inputs.q, inputs.k_cache, inputs.v_cache, inputs.batch, options)
    exact = inputs.in_float64()
    wanted = paged_attention_torch(exact.q, exact.k_cache, exact.v_cache, exact.batch, options)
    return largest_error(got, wanted)
