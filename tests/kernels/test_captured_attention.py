"""Attention launched for the longest context that there may be, as a CUDA graph keeps it."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from naive_attention import head_options, make_step

from assembler.kernels.attention_options import AttentionOptions
from assembler.kernels.gpu import GPUS
from assembler.kernels.paged_attention_splits import choose_splits
from assembler.kernels.paged_attention_triton import paged_attention_triton

LONGEST = 40960
OPTIONS = {
    "plain": AttentionOptions(scale=0.3),
    "window": AttentionOptions(scale=0.3, window=5),
    "sinks": head_options(4, "sinks"),
}


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_contexts_far_below_the_longest(options, poisoned_memory):
    """Splits are chosen for the longest context; on the device short ones leave most of them."""
    step = make_step([1, 1, 1], [3, 300, 1], kv_heads=1, page_size=16, window=options.window)
    batch = replace(step.batch, max_context_len=LONGEST)
    gpu = replace(GPUS["sm_90"], processors=12)
    assert choose_splits(3, LONGEST, 2 * gpu.processors, lines=4, ragged=True) == 16
    caches = step.k_cache, step.v_cache
    got = paged_attention_triton(step.q, *caches, batch, options, gpu=gpu)
    torch.testing.assert_close(got.double(), step.expected(options), atol=1e-5, rtol=1e-5)
