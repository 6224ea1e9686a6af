"""The tiny models that every shipped conf is compared on: one table, one row a variant.

A row names the conf, transformers' config class and the knobs of a tiny model; everything else
(random weights, logits, the hub's dialect of config.json, paged runs, ranks, export) follows from
it. `CASES` are all rows. The default tests take the few of `QUICK`, which between them have every
kind of block; the others are marked slow.
"""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from cases import classic, dense, gemma, latent, llama, moe, parallel
from cases.case import LENGTH, VOCAB_SIZE, WINDOW, Case

__all__ = ["CASES", "LENGTH", "QUICK", "VOCAB_SIZE", "WINDOW", "Case", "named", "sweep"]

CASES: tuple[Case, ...] = (
    *llama.CASES,
    *gemma.CASES,
    *classic.CASES,
    *dense.CASES,
    *moe.CASES,
    *latent.CASES,
    *parallel.CASES,
)
QUICK = frozenset(
    {
        "apertus-biases",
        "bloom-usual",
        "cohere-qk-norms-biases",
        "deepseek_v3-groups-yarn",
        "gemma2-softcaps",
        "gemma3-multimodal",
        "glm4_moe-qk-norms",
        "gpt2-published-names",
        "gpt_neox-parallel",
        "gpt_oss-windows",
        "llama-biases",
        "llama-dynamic-rope-long-text",
        "llama4_text-chunks-scaled",
        "opt-projections-post-norm",
        "phi3-longrope-long-text-tied",
        "phimoe-wide-jitter",
        "qwen2-tied",
        "qwen2_moe-dense-between-windows",
        "qwen3-windows-tied",
        "xglm-usual",
    }
)


def named(name: str) -> Case:
    """The row of that name."""
    (case,) = (case for case in CASES if case.name == name)
    return case


def sweep() -> Sequence[object]:
    """All rows as pytest parameters; those that are not `QUICK` are marked slow."""
    return [
        pytest.param(case, id=case.name, marks=() if case.name in QUICK else pytest.mark.slow)
        for case in CASES
    ]
