"""Storing keys and values, and what is done to heads before it, on the device."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from gpu_errors import TOLERANCE, Check, largest_error, name_of
from gpu_inputs import head_steps

from assembler.kernels.cost import AttentionShape
from assembler.kernels.head_steps import HeadNorm, HeadSteps, Rotation, rope_store_kv_torch
from assembler.kernels.latent_kv import LatentNorm, latent_store_kv_torch
from assembler.kernels.store_kv_torch import store_kv_torch

E4M3 = torch.float8_e4m3fn
SHAPE = AttentionShape(heads=4, kv_heads=2, head_dim=64)
SCALES = (0.02, 0.5)
# One step of float8 e4m3 in proportion, where rounding before it puts a number beyond its border.
ONE_STEP = 1 / 8


def head_checks(
    device: torch.device, dtype: torch.dtype, smoke: bool, all_forms: bool
) -> Iterator[Check]:
    """Storing and Qwen3's steps in every dtype, other models' steps if `all_forms`.

    Numbers that are only stored must be the same ones, of 8 bits too.
    """
    from assembler.kernels.rope_kv_triton import rope_store_kv_triton
    from assembler.kernels.store_kv_triton import store_kv_triton

    tokens, dtype_name = 3 if smoke else 130, name_of(dtype)
    q, k, v = (
        torch.randn(tokens, heads, SHAPE.head_dim, device=device).to(dtype)
        for heads in (SHAPE.heads, SHAPE.kv_heads, SHAPE.kv_heads)
    )
    slots = torch.randperm(tokens, device=device)
    slots[0] = -1

    def written(run: Callable[..., torch.Tensor | None], kept: torch.dtype, *more: object):
        """All that it wrote and gave, in a row."""
        pages = (-(-tokens // 16), 16, SHAPE.kv_heads, SHAPE.head_dim)
        caches = [torch.zeros(pages, device=device).to(kept) for _ in range(2)]
        heads = (q, k, v) if more and isinstance(more[0], HeadSteps) else (k, v)
        out = run(*heads, *caches, slots, *more)
        return torch.cat([t.float().flatten() for t in (*caches, out) if t is not None])

    def error(fused: Callable, plain: Callable, kept: torch.dtype, *more: object) -> float:
        return largest_error(written(fused, kept, *more), written(plain, kept, *more))

    for kept, more, about in ((dtype, (), ""), (E4M3, SCALES, ", 8-bit cache")):
        yield (
            f"store_kv, {dtype_name}{about}",
            lambda kept=kept, more=more: error(store_kv_triton, store_kv_torch, kept, *more),
            0.0,
        )
    forms = {"QK-norm + RoPE + store_kv": head_steps(SHAPE, tokens, k)}
    if all_forms:
        forms |= _forms(device, dtype, tokens)
    for name, steps in forms.items():
        yield (
            f"{name}, {dtype_name}",
            lambda s=steps: error(rope_store_kv_triton, rope_store_kv_torch, dtype, s),
            TOLERANCE[dtype],
        )
    steps = head_steps(SHAPE, tokens, k)
    yield (
        f"QK-norm + RoPE + store_kv, {dtype_name}, 8-bit cache",
        lambda: error(rope_store_kv_triton, rope_store_kv_torch, E4M3, steps, *SCALES),
        max(TOLERANCE[dtype], ONE_STEP),
    )
    yield from _latent_checks(device, dtype, tokens, all_forms)


def _latent_checks(
    device: torch.device, dtype: torch.dtype, tokens: int, all_forms: bool
) -> Iterator[Check]:
    """A latent and its key as one row of the cache, of 8 bits too if `all_forms`."""
    from assembler.kernels.latent_kv_triton import latent_store_kv_triton

    heads, rank, turned = 4, 96, 32

    def random(*shape: int) -> torch.Tensor:
        return torch.randn(shape, device=device).to(dtype)

    q, kv, weight = random(tokens, heads, turned), random(tokens, rank + turned), random(rank)
    rotation = Rotation(random(tokens, 1, turned), random(tokens, 1, turned), "interleaved")
    slots = torch.randperm(tokens, device=device)
    slots[0] = -1

    def written(run: Callable[..., None], kept: torch.dtype, scale: float) -> torch.Tensor:
        pages = (-(-tokens // 16), 16, 1, rank + turned)
        cache = torch.zeros(pages, device=device).to(kept)
        queries = torch.zeros(tokens, heads, rank + turned, device=device).to(dtype)
        run(q, queries, kv, cache, slots, LatentNorm(False, 1e-6, 0, weight), rotation, scale)
        return torch.cat([cache.float().flatten(), queries.float().flatten()])

    kinds = {"": (dtype, 1.0, TOLERANCE[dtype])}
    if all_forms:
        kinds[", 8-bit cache"] = (E4M3, 0.02, max(TOLERANCE[dtype], ONE_STEP))
    for about, (kept, scale, bound) in kinds.items():

        def error(kept: torch.dtype = kept, scale: float = scale) -> float:
            runs = (latent_store_kv_triton, latent_store_kv_torch)
            return largest_error(*(written(run, kept, scale) for run in runs))

        yield f"latent norm + RoPE + store, {name_of(dtype)}{about}", error, bound


def _forms(device: torch.device, dtype: torch.dtype, tokens: int) -> dict[str, HeadSteps]:
    """Pairs side by side, bounds, factors, parts of heads, norms after and over all heads."""

    def random(*shape: int) -> torch.Tensor:
        return torch.randn(shape, device=device).to(dtype)

    def turned(dim: int, style: str) -> Rotation:
        return Rotation(random(tokens, 1, dim), random(tokens, 1, dim), style)

    dim, widths = SHAPE.head_dim, (SHAPE.heads, SHAPE.kv_heads)
    leaves = [random(dim) for _ in range(4)]
    whole = [random(heads * dim) for heads in widths]
    each = [random(heads, dim) for heads in widths]
    factors = random(tokens, 1, 1)
    return {
        "pairs, bound, factors": HeadSteps(None, 1.5, turned(dim, "interleaved"), factors),
        "LayerNorm after RoPE of a part": HeadSteps(
            HeadNorm(True, 1e-6, 0, *leaves, after_rope=True), None, turned(dim // 2, "half")
        ),
        "a norm of each head": HeadSteps(
            HeadNorm(False, 1e-6, 1, *each), None, turned(dim, "half_reversed")
        ),
        "one norm of all heads": HeadSteps(
            HeadNorm(False, 1e-6, 0, *whole, all_heads=True), None, turned(dim, "half")
        ),
        "no norm, no rotation": HeadSteps(),
    }
