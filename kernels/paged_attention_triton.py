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

import torch
import triton
import triton.language as tl

from assembler.kernels.attention_options import AttentionOptions
from assembler.kernels.fp8 import E4M3
from assembler.kernels.gpu import GPU, gpu_of
from assembler.kernels.paged_attention_kernel import Attention, paged_attention_kernel
from assembler.kernels.paged_attention_merge import merge_splits_kernel
from assembler.kernels.paged_attention_tile import ALIBI_EXACT, ALIBI_ROUNDED
from assembler.kernels.paged_attention_tiling import Heads, choose_splits, choose_tiling
from assembler.kernels.paged_batch import PagedBatch

_OPERANDS = {torch.float32: tl.float32, torch.float16: tl.float16, torch.bfloat16: tl.bfloat16}


@dataclass(frozen=True)
class _Call:
    """The tensors of one attention and the constants that follow from them."""

    out: torch.Tensor  # [T, H, Dv]
    q: torch.Tensor
    k_cache: torch.Tensor
    v_cache: torch.Tensor
    batch: PagedBatch
    options: AttentionOptions
    what: Attention
    heads: Heads
    gpu: GPU


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

    Arguments as in `paged_attention_torch`; the last dim of q must be contiguous. `splits` (a power
    of two) is how many parts each context is cut into, by default as many as fill the device; `gpu`
    is what tiles are chosen for, by default the device of q.
    """
    latent = v_cache is None
    assert latent == (options.value_dim is not None)
    assert q.stride(2) == 1, q.stride()
    assert k_cache.is_contiguous() and (latent or v_cache.is_contiguous())
    head_dim_v = options.value_dim if latent else v_cache.shape[3]
    out = q.new_empty(*q.shape[:2], head_dim_v)
    if len(q) == 0:
        return out
    gpu = gpu or gpu_of(q.device)
    if k_cache.dtype == E4M3 and not gpu.fp8:
        k_cache, v_cache = (None if c is None else c.view(torch.uint8) for c in (k_cache, v_cache))
    what = _constants(q, k_cache, head_dim_v, options)
    heads = Heads(
        group=what.GROUP,
        head_dim=what.HEAD_DIM,
        head_dim_v=head_dim_v,
        latent=latent,
        itemsize=q.element_size(),
        cache_itemsize=k_cache.element_size(),
    )
    v_cache = k_cache if latent else v_cache
    call = _Call(out, q, k_cache, v_cache, batch, options, what, heads, gpu)
    num_sequences = len(batch.context_lens)
    if batch.is_decode:
        _launch(call, decode=True, splits=splits)
    elif num_sequences * batch.max_seqlen_q == len(q):  # no sequence has one query
        _launch(call, decode=False, splits=splits)
    else:
        _launch(call, decode=True, mixed=True, splits=splits)
        _launch(call, decode=False, mixed=True, splits=1)
    return out


def _launch(call: _Call, *, decode: bool, splits: int | None, mixed: bool = False) -> None:
    """Attend with the sequences of one query (`decode`) or the others; all alike if not `mixed`."""
    batch, options, what, q = call.batch, call.options, call.what, call.q
    (num_tokens, num_heads, _), num_sequences = q.shape, len(batch.context_lens)
    tiling = choose_tiling(call.heads, call.gpu, decode)
    tiles = tiling.tiles
    blocks = num_sequences if decode else num_tokens // tiles.BLOCK_Q + num_sequences
    per_block = what.NUM_KV_HEADS * triton.cdiv(what.GROUP, tiles.HEADS)
    if splits is None:
        max_keys = min(batch.max_context_len, options.reach or batch.max_context_len)
        splits = choose_splits(blocks * per_block, max_keys, call.gpu.processors)
    partial, lse = call.out, call.out
    if splits > 1:
        shape = (num_tokens, num_heads, splits)
        partial = q.new_empty(*shape, what.HEAD_DIM_V, dtype=torch.float32)
        lse = q.new_empty(shape, dtype=torch.float32)
    paged_attention_kernel[(blocks, per_block * splits)](
        partial,
        lse,
        q,
        call.k_cache,
        call.v_cache,
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
        what=what,
        tiles=tiles,
        DECODE=decode,
        MIXED=mixed,
        SPLITS=splits,
        num_warps=tiling.num_warps,
        num_stages=tiling.num_stages,
        enable_fp_fusion=True,  # Triton 3.9 warns of a coming change of default if it is not said
    )
    if splits > 1:
        merge_splits_kernel[(num_sequences if decode else num_tokens, num_heads)](
            call.out,
            partial,
            lse,
            batch.cu_seqlens_q,
            NUM_HEADS=num_heads,
            HEAD_DIM_V=what.HEAD_DIM_V,
            BLOCK_DV=triton.next_power_of_2(what.HEAD_DIM_V),
            SPLITS=splits,
            DECODE=decode,
            enable_fp_fusion=True,
        )


def _constants(
    q: torch.Tensor, k_cache: torch.Tensor, head_dim_v: int, options: AttentionOptions
) -> Attention:
    """What the kernel is compiled for."""
    page_size, num_kv_heads, head_dim = k_cache.shape[1:]
    operand = q.dtype
    if k_cache.element_size() == 1 and operand == torch.bfloat16:
        operand = torch.float16  # 8 bits turn into float16 in one instruction, and are exact there
    elif triton.knobs.runtime.interpret and operand == torch.bfloat16:
        operand = torch.float32  # Triton's interpreter takes a bfloat16's bits for an integer
    alibi = (ALIBI_ROUNDED if options.alibi_rounded else ALIBI_EXACT).value
    return Attention(
        NUM_KV_HEADS=num_kv_heads,
        GROUP=q.shape[1] // num_kv_heads,
        HEAD_DIM=head_dim,
        HEAD_DIM_V=head_dim_v,
        PAGE_SIZE=page_size,
        LATENT=options.value_dim is not None,
        WINDOW=options.window or 0,
        CHUNK=options.chunk or 0,
        SOFTCAP=options.softcap or 0.0,
        SINKS=options.sinks is not None,
        ALIBI=0 if options.alibi_slopes is None else alibi,
        OPERAND=_OPERANDS[operand],
    )
