"""Attention over paged KV memory on a GPU, for steps that mix prefill and decode freely.

The kernel runs the online softmax of FlashAttention-2 (Dao, 2023) over the pages of PagedAttention
(Kwon et al., 2023, vLLM). The query heads that share a key/value head are packed into the rows of
one tile, so a page is read once for all of them. Sequences of one query token and of several want
tiles of different shapes: a step with both is two launches, each of which skips the other's. When
there are too few programs to fill the device, contexts are cut into splits that run side by side
and are merged by a second kernel (Flash-Decoding: Dao et al., 2023). In a latent cache
(DeepSeek-V2, 2024) the values are the first numbers of the keys: these are read once and serve as
both.

Same contract as `paged_attention_torch`, which it is tested against.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import NamedTuple

import torch
import triton
import triton.language as tl

from assembler.kernels.attention_options import AttentionOptions
from assembler.kernels.fp8 import E4M3
from assembler.kernels.gpu import GPU, gpu_of
from assembler.kernels.paged_attention_kernel import Attention, paged_attention_kernel
from assembler.kernels.paged_attention_merge import BLOCK_DV, merge_splits_kernel
from assembler.kernels.paged_attention_splits import MAX_SPLITS, choose_splits
from assembler.kernels.paged_attention_tile import ALIBI_EXACT, ALIBI_ROUNDED
from assembler.kernels.paged_attention_tiling import Heads, choose_tiling
from assembler.kernels.paged_batch import PagedBatch

OPERANDS = {torch.float32: tl.float32, torch.float16: tl.float16, torch.bfloat16: tl.bfloat16}


class _Form(NamedTuple):
    """What the calls of an attention have in common, whatever the step."""

    dtype: torch.dtype
    cache_dtype: torch.dtype
    page_size: int
    num_kv_heads: int
    head_dim: int
    head_dim_v: int
    num_heads: int
    latent: bool
    window: int
    chunk: int
    softcap: float
    sinks: bool
    alibi: int
    gpu: GPU


@dataclass(frozen=True)
class _Plan:
    """How an attention is launched, for sequences of one query token or for the others."""

    constants: dict[str, object]  # of the kernel, and how it is compiled
    merge_constants: dict[str, object]
    block_q: int  # query tokens of a program
    head_parts: int  # programs for all heads of a query token
    lines: int  # query tokens times heads of a program
    slots: int  # programs that the device runs side by side


def paged_attention_triton(
    q: torch.Tensor,
    k_cache: torch.Tensor,
    v_cache: torch.Tensor | None,
    batch: PagedBatch,
    options: AttentionOptions,
    *,
    splits: int | None = None,
    gpu: GPU | None = None,
) -> torch.Tensor:
    """Causal attention of each sequence's query tokens over what its pages hold -> [T, H, Dv].

    Arguments as in `paged_attention_torch`; the last dim of q must be contiguous. `splits` (at most
    MAX_SPLITS) is how many parts each context is cut into, by default as many as fill the device;
    `gpu` is what tiles are chosen for, by default the device of q.
    """
    latent = v_cache is None
    assert latent == (options.value_dim is not None)
    assert q.stride(2) == 1, q.stride()
    assert k_cache.is_contiguous() and (latent or v_cache.is_contiguous())
    num_tokens, num_heads, _ = q.shape
    head_dim_v = options.value_dim if latent else v_cache.shape[3]
    out = q.new_empty(num_tokens, num_heads, head_dim_v)
    if num_tokens == 0:
        return out
    gpu = gpu or gpu_of(q.device)
    alibi = 0
    if options.alibi_slopes is not None:
        alibi = (ALIBI_ROUNDED if options.alibi_rounded else ALIBI_EXACT).value
    form = _Form(
        q.dtype, k_cache.dtype, *k_cache.shape[1:], head_dim_v, num_heads, latent,
        options.window or 0, options.chunk or 0, options.softcap or 0.0,
        options.sinks is not None, alibi, gpu,
    )  # fmt: skip
    if k_cache.dtype == E4M3 and not gpu.fp8:
        k_cache, v_cache = (None if c is None else c.view(torch.uint8) for c in (k_cache, v_cache))
    decodes, prefills = _plans(form)
    call = (out, q, k_cache, k_cache if latent else v_cache, batch, options)
    if batch.is_decode:
        _launch(*call, decodes, splits)
    elif len(batch.context_lens) * batch.max_seqlen_q == num_tokens:  # no sequence has one query
        _launch(*call, prefills, splits)
    else:
        _launch(*call, decodes, splits)
        _launch(*call, prefills, 1)
    return out


def _launch(
    out: torch.Tensor,
    q: torch.Tensor,
    k_cache: torch.Tensor,
    v_cache: torch.Tensor,
    batch: PagedBatch,
    options: AttentionOptions,
    plan: _Plan,
    splits: int | None,
) -> None:
    """Attend with the sequences of one query token, or with the others, as `plan` is for."""
    (num_tokens, num_heads, head_dim_v), num_sequences = out.shape, len(batch.context_lens)
    decode = plan.constants["DECODE"]
    blocks = num_sequences if decode else num_tokens // plan.block_q + num_sequences
    if splits is None:
        max_keys = min(batch.max_context_len, options.reach or batch.max_context_len)
        splits = choose_splits(
            blocks * plan.head_parts,
            max_keys,
            plan.slots,
            lines=plan.lines,
            ragged=num_sequences > 1,
        )
    partial, lse, places = out, out, num_sequences if decode else num_tokens
    if splits > 1:
        assert splits <= MAX_SPLITS, splits
        partial = q.new_empty(places, num_heads, splits, head_dim_v, dtype=torch.float32)
        lse = q.new_empty(places, num_heads, splits, dtype=torch.float32)
    paged_attention_kernel[(blocks, plan.head_parts, splits)](
        partial,
        lse,
        q,
        k_cache,
        v_cache,
        batch.page_table,
        batch.cu_seqlens_q,
        batch.context_lens,
        q if options.sinks is None else options.sinks,
        q if options.alibi_slopes is None else options.alibi_slopes,
        options.scale,
        options.k_scale,
        options.v_scale,
        num_sequences,
        q.stride(0),
        q.stride(1),
        batch.page_table.stride(0),
        SPLIT=splits > 1,
        **plan.constants,
    )
    if splits > 1:
        merge_splits_kernel[(places, num_heads, triton.cdiv(head_dim_v, BLOCK_DV))](
            out, partial, lse, batch.cu_seqlens_q, splits, **plan.merge_constants
        )


@cache
def _plans(form: _Form) -> tuple[_Plan, _Plan]:
    """For sequences of one query token and of several; worked out once for all layers and steps."""
    return _plan(form, decode=True), _plan(form, decode=False)


def _plan(form: _Form, *, decode: bool) -> _Plan:
    """Tiles and constants of a launch."""
    heads = Heads(
        group=form.num_heads // form.num_kv_heads,
        head_dim=form.head_dim,
        head_dim_v=form.head_dim_v,
        latent=form.latent,
        itemsize=form.dtype.itemsize,
        cache_itemsize=form.cache_dtype.itemsize,
    )
    tiling = choose_tiling(heads, form.gpu, decode)
    tiles = tiling.tiles
    # Triton 3.9 warns of a coming change of default where it is not said whether to fuse.
    common = {"DECODE": decode, "enable_fp_fusion": True}
    return _Plan(
        constants={
            "what": _attention(form, heads.group),
            "tiles": tiles,
            "num_warps": tiling.num_warps,
            "num_stages": tiling.num_stages,
            **common,
        },
        merge_constants={
            "NUM_HEADS": form.num_heads,
            "HEAD_DIM_V": form.head_dim_v,
            "BLOCK_DV": BLOCK_DV,
            "MAX_SPLITS": MAX_SPLITS,
            **common,
        },
        block_q=tiles.BLOCK_Q,
        head_parts=form.num_kv_heads * triton.cdiv(heads.group, tiles.HEADS),
        lines=tiles.BLOCK_Q * tiles.HEADS,
        slots=tiling.slots(form.gpu),
    )


def _attention(form: _Form, group: int) -> Attention:
    """What the kernel is compiled for."""
    operand = form.dtype
    if form.cache_dtype.itemsize == 1 and operand == torch.bfloat16:
        operand = torch.float16  # 8 bits turn into float16 in one instruction, and are exact there
    elif triton.knobs.runtime.interpret and operand == torch.bfloat16:
        operand = torch.float32  # Triton's interpreter takes a bfloat16's bits for an integer
    return Attention(
        NUM_KV_HEADS=form.num_kv_heads,
        GROUP=group,
        HEAD_DIM=form.head_dim,
        HEAD_DIM_V=form.head_dim_v,
        PAGE_SIZE=form.page_size,
        LATENT=form.latent,
        WINDOW=form.window,
        CHUNK=form.chunk,
        SOFTCAP=form.softcap,
        SINKS=form.sinks,
        ALIBI=form.alibi,
        OPERAND=OPERANDS[operand],
    )
