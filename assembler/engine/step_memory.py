"""What a step of the engine takes besides weights and KV cache, found without running it."""

from __future__ import annotations

import itertools

import torch
from torch import nn

from assembler.blocks.context import ForwardContext
from assembler.engine.kv_cache import cache_specs
from assembler.engine.live_memory import LiveMemory
from assembler.kernels.attention_options import AttentionOptions
from assembler.kernels.gpu import GPU, gpu_of
from assembler.kernels.paged_attention_splits import split_bytes
from assembler.kernels.paged_attention_tiling import Heads
from assembler.kernels.paged_batch import PagedBatch


@torch.inference_mode()
def step_memory(model: nn.Module, num_tokens: int, num_logits: int) -> int:
    """Bytes that live at the fullest moment of a step of `num_tokens` tokens.

    The model runs on the meta device, with its own parameters' shapes and dtypes, and every tensor
    that its operators make is counted; logits and a float32 copy of them too, which sampling with
    penalties needs, and scoring prompts a part at a time. On a GPU so is the most that attention
    over split contexts keeps. Not counted are workspaces inside of operators.

    Args:
        model: a model on any device, which is left as it is.
        num_logits: rows of logits: of sequences that sample and of prompts that are scored.
    """
    num_logits = min(num_logits, num_tokens)
    tensors = dict(itertools.chain(model.named_parameters(), model.named_buffers()))
    absent = {name: tensor.to("meta") for name, tensor in tensors.items()}
    gpu = _gpu(next(iter(tensors.values())).device)
    with torch.device("meta"):
        input_ids, ctx = meta_step(model, num_tokens, num_logits, gpu)
        held = [*absent.values(), *(keys for keys, _ in ctx.kv_caches)]
        with LiveMemory(held) as memory:
            logits = torch.func.functional_call(model, absent, (input_ids, ctx))
            logits = logits.to(torch.float32, copy=True)
    return memory.peak


def _gpu(device: torch.device) -> GPU | None:
    return gpu_of(device) if device.type == "cuda" else None


def meta_step(
    model: nn.Module, num_tokens: int, num_logits: int, gpu: GPU | None = None
) -> tuple[torch.Tensor, ForwardContext]:
    """A prefill of one sequence: every fill of the pages takes the same memory.

    Attention takes the memory of split contexts on `gpu`, if there is one.
    """
    ids = torch.empty(num_tokens, dtype=torch.int64)
    one = torch.empty(1, dtype=torch.int32)
    batch = PagedBatch(
        slot_mapping=ids,
        page_table=one[None],
        cu_seqlens_q=torch.empty(2, dtype=torch.int32),
        context_lens=one,
        max_seqlen_q=num_tokens,
        max_context_len=num_tokens,
    )
    caches = [
        (
            torch.empty(0, 1, spec.num_kv_heads, spec.head_dim),
            None if spec.latent else torch.empty(0, 1, spec.num_kv_heads, spec.stored_value_dim),
        )
        for spec in cache_specs(model)
    ]
    ctx = ForwardContext(
        positions=ids,
        sequence_lengths=ids,
        paged=batch,
        attention=_AttentionShapes(gpu),
        kv_caches=caches,
        logit_rows=ids[:num_logits],
    )
    return ids, ctx


class _AttentionShapes:
    """An attention backend that stores nothing and returns what has the right shape."""

    name = "meta"

    def __init__(self, gpu: GPU | None) -> None:
        self._gpu = gpu

    def store_kv(self, *tensors: torch.Tensor | None) -> None:
        """Nothing is kept."""

    def attend(
        self,
        q: torch.Tensor,
        k_cache: torch.Tensor,
        v_cache: torch.Tensor | None,
        batch: PagedBatch,
        options: AttentionOptions,
    ) -> torch.Tensor:
        """q [T, H, D] -> [T, H, Dv]."""
        _, num_heads, head_dim = q.shape
        head_dim_v = options.value_dim if v_cache is None else v_cache.shape[3]
        out = q.new_empty(*q.shape[:-1], head_dim_v)
        if self._gpu is not None:
            group, itemsize = num_heads // k_cache.shape[2], q.itemsize
            heads = Heads(group, head_dim, head_dim_v, v_cache is None, itemsize, itemsize)
            q.new_empty(split_bytes(heads, self._gpu), dtype=torch.uint8)  # until they are merged
        return out
