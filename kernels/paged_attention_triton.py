"""Attention over paged KV memory on a GPU, for steps that mix prefill and decode freely.

One kernel runs the online softmax of FlashAttention-2 (Dao, 2023) over the pages of PagedAttention
(Kwon et al., 2023, vLLM). The query heads that share a key/value head are packed into the rows of
one tile, so a page is read once for all of them. When a decode step has too few sequences to fill
the device, their contexts are cut into splits that run side by side and are merged by a second
kernel (Flash-Decoding: Dao et al., 2023). In a latent cache (DeepSeek-V2, 2024) the values are the
first numbers of the keys: these are read once and serve as both.

Same contract as `paged_attention_torch`, which it is tested against.
"""

from __future__ import annotations

import torch
import triton

from assembler.kernels.attention_options import AttentionOptions
from assembler.kernels.paged_attention_kernel import merge_splits_kernel, paged_attention_kernel
from assembler.kernels.paged_attention_tile import ALIBI_EXACT, ALIBI_ROUNDED
from assembler.kernels.paged_attention_tiling import choose_splits, choose_tiling
from assembler.kernels.paged_batch import PagedBatch


def _splits_to_fill(
    device: torch.device, batch: PagedBatch, programs_each: int, reach: int | None
) -> int:
    """The splits of a decode step of so many programs a sequence; a prefill has enough of them."""
    if not batch.is_decode or device.type != "cuda":
        return 1
    max_keys = min(batch.max_context_len, reach or batch.max_context_len)
    processors = torch.cuda.get_device_properties(device).multi_processor_count
    return choose_splits(len(batch.context_lens) * programs_each, max_keys, processors)


def paged_attention_triton(
    q: torch.Tensor,
    k_cache: torch.Tensor,
    v_cache: torch.Tensor | None,
    batch: PagedBatch,
    options: AttentionOptions,
    *,
    splits: int | None = None,
) -> torch.Tensor:
    """Causal attention of each sequence's query tokens over what its pages hold -> [T, H, Dv].

    Arguments as in `paged_attention_torch`; the last dim of q must be contiguous. `splits` (a power
    of two) is how many parts each context is cut into, by default as many as fill the device.
    """
    latent = v_cache is None
    assert latent == (options.value_dim is not None)
    assert q.stride(2) == 1, q.stride()
    assert k_cache.is_contiguous() and (latent or v_cache.is_contiguous())
    num_tokens, num_heads, head_dim = q.shape
    page_size, num_kv_heads = k_cache.shape[1:3]
    head_dim_v = options.value_dim if latent else v_cache.shape[3]
    group = num_heads // num_kv_heads
    out = q.new_empty(num_tokens, num_heads, head_dim_v)
    if num_tokens == 0:
        return out
    own_dim = head_dim - head_dim_v if latent else head_dim
    tiling = choose_tiling(group, own_dim, head_dim_v, q.element_size(), batch.max_seqlen_q)
    programs_each = num_kv_heads * triton.cdiv(group, tiling.HEADS)
    if splits is None:
        splits = _splits_to_fill(q.device, batch, programs_each, options.reach)
    partial, lse = out, out
    if splits > 1:
        partial = out.new_empty(num_tokens, num_heads, splits, head_dim_v, dtype=torch.float32)
        lse = out.new_empty(num_tokens, num_heads, splits, dtype=torch.float32)
    query_blocks = triton.cdiv(batch.max_seqlen_q, tiling.BLOCK_Q)
    paged_attention_kernel[(query_blocks, len(batch.context_lens), programs_each * splits)](
        partial,
        lse,
        q,
        k_cache,
        k_cache if latent else v_cache,
        batch.page_table,
        batch.cu_seqlens_q,
        batch.context_lens,
        q if options.sinks is None else options.sinks,
        q if options.alibi_slopes is None else options.alibi_slopes,
        options.scale,
        q.stride(0),
        q.stride(1),
        batch.page_table.stride(0),
        NUM_KV_HEADS=num_kv_heads,
        GROUP=group,
        HEAD_DIM=head_dim,
        HEAD_DIM_V=head_dim_v,
        PAGE_SIZE=page_size,
        LATENT=latent,
        **_option_constants(options),
        # Triton's interpreter takes the bits of a bfloat16 for an integer in tl.dot.
        WIDEN=triton.knobs.runtime.interpret and q.dtype == torch.bfloat16,
        SPLITS=splits,
        enable_fp_fusion=True,  # Triton 3.9 warns of a coming change of default if it is not said
        **vars(tiling),
    )
    if splits > 1:
        merge_splits_kernel[(num_tokens * num_heads,)](
            out,
            partial,
            lse,
            HEAD_DIM_V=head_dim_v,
            BLOCK_DV=tiling.BLOCK_DV,
            SPLITS=splits,
            enable_fp_fusion=True,
        )
    return out


def _option_constants(options: AttentionOptions) -> dict[str, int | float | bool]:
    """`options` as constants of the kernel."""
    alibi = (ALIBI_ROUNDED if options.alibi_rounded else ALIBI_EXACT).value
    return {
        "WINDOW": options.window or 0,
        "CHUNK": options.chunk or 0,
        "SOFTCAP": options.softcap or 0.0,
        "SINKS": options.sinks is not None,
        "ALIBI": 0 if options.alibi_slopes is None else alibi,
    }
