"""Whole models through the fused kernels, in Triton's interpreter: the logits of transformers.

What fuses is found by pattern: no row of the table of tiny models is told what to do.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest
from cases import QUICK, named
from test_parity import assert_close
from tiny_checkpoints import make_checkpoint, reference_logits, token_ids
from torch.utils._python_dispatch import TorchDispatchMode

import assembler
from assembler.kernels import fused
from assembler.verifying.paged_texts import PagedTexts

PROMPTS = (5, 3)
FIRST = ("cohere-qk-norms-biases", "gemma2-softcaps", "gpt2-published-names")  # others are slow
# Heads that are treated in other ways than those of `QUICK`.
MORE = (
    "afmoe-windows",  # gated outputs, embeddings times a number
    "dbrx-clipped",
    "glm-half-rotated",
    "granite-multipliers",
    "hunyuan_v1_dense-alpha",  # normed after the rotation
    "ministral3-scaled-queries",
    "nanochat-softcap",  # turned the other way, normed after it without a weight
    "olmo2-biases",  # normed over all heads
    "stablelm-parallel-qk-norms-biases",
)
OPERATIONS = {
    "cohere-qk-norms-biases": {"embed", "layer_norm", "add_layer_norm", "rope_store_kv", "gated"},
    "deepseek_v3-groups-yarn": {"latent_store_kv", "rms_norm", "add_rms_norm"},
    "gemma2-softcaps": {"embed", "rms_norm", "add_rms_norm", "rope_store_kv", "gated"},
    "gpt2-published-names": {"embed", "layer_norm", "add_layer_norm"},
    "gpt_oss-windows": {"add_rms_norm", "rope_store_kv", "choose_experts", "grouped_mlp"},
    "olmo2-biases": {"rope_store_kv", "rms_norm"},
    "opt-projections-post-norm": {"embed", "add_layer_norm"},
    "qwen3-windows-tied": {"embed", "rms_norm", "add_rms_norm", "rope_store_kv", "gated"},
}


class Calls(TorchDispatchMode):
    """Counts the calls of this package's operations."""

    def __init__(self) -> None:
        super().__init__()
        self.names: Counter[str] = Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.namespace == "assembler":
            self.names[func._opname] += 1
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(n, marks=() if n in FIRST else pytest.mark.slow)
        for n in sorted(QUICK | {*MORE})
    ],
)
def test_the_logits_are_those_of_transformers(name: str, tmp_path: Path, monkeypatch) -> None:
    case = named(name)
    texts = token_ids()[:, :8]
    logits = reference_logits(make_checkpoint(case, tmp_path), texts)
    model = assembler.load_model(tmp_path)
    monkeypatch.setattr(fused, "fused_choice", lambda: "always")
    paged = PagedTexts(model, texts, "torch")
    with Calls() as calls:
        for counts in (PROMPTS, (2, 1)):
            before = list(paged.done)
            for s, rows in enumerate(paged.advance(counts, [texts.shape[1]] * 2)):
                assert_close(rows, logits[s, before[s] : paged.done[s]], f"text {s}")
    assert calls.names["embed"] == 2
    assert OPERATIONS.get(name, set()) <= set(calls.names)
