"""After a warm-up no step of any size has Triton compile a paged attention."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from itertools import product
from pathlib import Path

import pytest
import torch
from compile_cases import MODEL_HEADS
from naive_attention import make_step

from assembler.kernels.attention_options import AttentionOptions
from assembler.kernels.dispatch import attention_backend
from assembler.kernels.gpu import GPUS
from assembler.kernels.paged_attention_splits import choose_splits
from assembler.kernels.paged_attention_tiling import choose_tiling
from assembler.kernels.paged_attention_warmup import warm_up_batches

SCRIPT = Path(__file__).with_name("attention_variants.py")


@pytest.mark.slow
def test_steps_of_all_sizes_launch_what_the_warm_up_did():
    environment = os.environ | {"TRITON_INTERPRET": "0", "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-W", "error", str(SCRIPT)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    # Whole and split decodes and prompts, two merges; with a window of 512 all but split prompts.
    assert json.loads(done.stdout) == {"warm": 9, "met": 9, "cold": []}


@pytest.mark.parametrize("architecture", GPUS)
def test_a_single_sequence_is_split_wherever_others_are(architecture):
    """The warm-up has one sequence, so that has to have the splits that later steps have."""
    gpu = GPUS[architecture]
    for heads, kv_heads, decode in product(MODEL_HEADS, (1, 2, 8, 32), (True, False)):
        tiling = choose_tiling(heads, gpu, decode)
        kv_heads = 1 if heads.latent else kv_heads
        programs = kv_heads * -(-heads.group // tiling.tiles.HEADS)
        lines = tiling.tiles.BLOCK_Q * tiling.tiles.HEADS
        assert choose_splits(programs, 8192, tiling.slots(gpu), lines=lines) > 1, (heads, kv_heads)


@pytest.mark.parametrize("name", ["torch", "triton"])
def test_a_warm_up_stores_nothing_and_reads_one_page(name):
    step = make_step([1], [1], page_size=16)
    backend = attention_backend(name, "cpu")
    for batch in warm_up_batches(4096, torch.device("cpu")):
        tokens = len(batch.slot_mapping)
        q, (k, v) = torch.ones(tokens, 4, 16), (torch.ones(tokens, 2, 16) for _ in range(2))
        before = step.k_cache.clone()
        backend.store_kv(k, v, step.k_cache, step.v_cache, batch.slot_mapping)
        torch.testing.assert_close(step.k_cache, before, rtol=0, atol=0, equal_nan=True)
        caches = (cache[:1].nan_to_num(1.0) for cache in (step.k_cache, step.v_cache))
        out = backend.attend(q, *caches, batch, AttentionOptions(scale=0.3))
        assert out.shape == q.shape and out.isfinite().all()
