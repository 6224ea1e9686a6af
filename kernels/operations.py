"""Attention over pages, its store and the experts as operations of torch (see `traced`).

`torch.ops.assembler.paged_attention`, `.store_kv` and `.grouped_mlp` take tensors and numbers; the
functions below spread out for them what the blocks hand over. Nothing is worked out anew for each
layer: the kernels find their way by the batch's own tables, on the device, and the launches are cut
by the numbers that are given. None has a backward.
"""

from __future__ import annotations

import torch

from assembler.kernels.attention_options import AttentionOptions
from assembler.kernels.expert_weights import ExpertWeights
from assembler.kernels.gating import Gating
from assembler.kernels.grouped_mlp_triton import launch_experts
from assembler.kernels.paged_attention_triton import paged_attention_triton
from assembler.kernels.paged_batch import PagedBatch
from assembler.kernels.store_kv_triton import store_kv_triton
from assembler.kernels.traced import is_traced, operation


@operation("assembler::paged_attention")
def paged_attention(
    q: torch.Tensor,
    k_cache: torch.Tensor,
    v_cache: torch.Tensor | None,
    value_dim: int | None,
    page_table: torch.Tensor,
    cu_seqlens_q: torch.Tensor,
    context_lens: torch.Tensor,
    max_seqlen_q: int,
    max_context_len: int,
    scale: float,
    window: int | None,
    chunk: int | None,
    softcap: float | None,
    sinks: torch.Tensor | None,
    alibi_slopes: torch.Tensor | None,
    alibi_rounded: bool,
    k_scale: float,
    v_scale: float,
) -> torch.Tensor:
    """`attend` with the fields of `PagedBatch` and `AttentionOptions` spread out -> [T, H, Dv]."""
    batch = PagedBatch(
        slot_mapping=context_lens.new_empty(0, dtype=torch.int64),  # attention stores nothing
        page_table=page_table,
        cu_seqlens_q=cu_seqlens_q,
        context_lens=context_lens,
        max_seqlen_q=max_seqlen_q,
        max_context_len=max_context_len,
    )
    options = AttentionOptions(
        scale=scale,
        window=window,
        chunk=chunk,
        softcap=softcap,
        sinks=sinks,
        alibi_slopes=alibi_slopes,
        alibi_rounded=alibi_rounded,
        value_dim=value_dim,
        k_scale=k_scale,
        v_scale=v_scale,
    )
    return paged_attention_triton(q, k_cache, v_cache, batch, options)


@paged_attention.register_fake
def _(q, k_cache, v_cache, value_dim, *_):
    return q.new_empty(*q.shape[:2], value_dim if v_cache is None else v_cache.shape[3])


def attend(
    q: torch.Tensor,
    k_cache: torch.Tensor,
    v_cache: torch.Tensor | None,
    batch: PagedBatch,
    options: AttentionOptions,
) -> torch.Tensor:
    """`paged_attention_triton` of q [T, H, D] -> [T, H, Dv], as an operation where it is traced."""
    if not is_traced(q):
        return paged_attention_triton(q, k_cache, v_cache, batch, options)
    return paged_attention(
        q,
        k_cache,
        v_cache,
        options.value_dim,
        batch.page_table,
        batch.cu_seqlens_q,
        batch.context_lens,
        batch.max_seqlen_q,
        batch.max_context_len,
        options.scale,
        options.window,
        options.chunk,
        options.softcap,
        options.sinks,
        options.alibi_slopes,
        options.alibi_rounded,
        options.k_scale,
        options.v_scale,
    )


store_kv = operation("assembler::store_kv", ("k_cache", "v_cache"))(store_kv_triton)
"""`store_kv_triton`, as an operation where it is traced."""


@store_kv.register_fake
def _(*_):
    return None


grouped_mlp = operation("assembler::grouped_mlp")(launch_experts)
"""`launch_experts` of x [N, H] -> [N, H], as an operation where it is traced."""


@grouped_mlp.register_fake
def _(x, *_):
    return x.new_empty(x.shape)


def run_experts(
    x: torch.Tensor,
    chosen: torch.Tensor,
    weights: torch.Tensor,
    experts: ExpertWeights,
    gating: Gating,
    *,
    weigh_input: bool = False,
) -> torch.Tensor:
    """`grouped_mlp_triton` of x [N, H] -> [N, H], as an operation where it is traced."""
    return grouped_mlp(
        x,
        chosen,
        weights,
        experts.gate_up,
        experts.down,
        experts.gate_up_bias,
        experts.down_bias,
        gating.name,
        gating.limit,
        gating.up_offset,
        weigh_input,
    )
