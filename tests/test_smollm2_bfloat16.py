"""The real model in bfloat16: no further from float32 than transformers in bfloat16 is."""

from __future__ import annotations

import copy

import pytest
import torch
from test_smollm2 import QUESTIONS, gguf, greedy_by_transformers, reference

from assembler import LLM, SamplingParams
from assembler.engine.cpu_step import cpu_step
from assembler.loading import load_model
from assembler.verifying.paged_texts import PagedTexts

pytestmark = pytest.mark.slow
__all__ = ["gguf", "reference"]  # fixtures

LENGTH = 120
NEW_TOKENS = 32


@pytest.fixture(scope="module")
def models(reference):
    """transformers' model in float32 and, with the same weights, in bfloat16."""
    model, _ = reference
    return model, copy.deepcopy(model).bfloat16()


def next_logits(model, ids: list[int]) -> torch.Tensor:
    with torch.inference_mode():
        return model(torch.tensor([ids])).logits[0, -1].float()


def test_greedy_texts_part_only_where_transformers_is_in_doubt_too(gguf, models):
    exact, rounded = models
    llm = LLM(gguf, dtype="bfloat16")
    prompts = [llm.chat_prompt([{"role": "user", "content": q}]) for q in QUESTIONS]
    params = SamplingParams(temperature=0.0, max_tokens=NEW_TOKENS)
    outputs = llm.generate(prompts, params, use_tqdm=False)  # all ten in one batch
    for prompt, output in zip(prompts, outputs, strict=True):
        ours = list(output.outputs[0].token_ids)
        theirs = greedy_by_transformers(rounded, prompt, NEW_TOKENS)
        if ours == theirs:
            continue
        pairs = zip(ours, theirs, strict=False)
        common = next(i for i, (one, other) in enumerate(pairs) if one != other)
        ids = [*prompt, *theirs[:common]]
        logits = next_logits(rounded, ids)
        gap = logits[theirs[common]] - logits[ours[common]]
        noise = (logits - next_logits(exact, ids)).abs().max()
        assert gap <= noise, f"after {common} tokens: a gap of {gap}, rounding errors to {noise}"


def test_logits_are_as_near_to_float32_as_those_of_transformers(gguf, models):
    exact, rounded = models
    texts = torch.randint(0, 49152, (1, LENGTH), generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        expected = exact(texts).logits[0]
        theirs = (rounded(texts).logits[0].float() - expected).square().mean().sqrt()
    model = load_model(gguf, dtype=torch.bfloat16)
    paged = PagedTexts(model, texts, "torch")
    paged.kv_caches = [(k.bfloat16(), v.bfloat16()) for k, v in paged.kv_caches]
    step = cpu_step(model, paged.kv_caches, torch.device("cpu"), torch.bfloat16)
    if step is None:
        pytest.skip("there is no C++ compiler")
    paged.model = step
    rows = [paged.advance((count,), [LENGTH])[0].float().clone() for count in (100, 1, 19)]
    ours = (torch.cat(rows) - expected).square().mean().sqrt()
    assert ours <= 1.1 * theirs
