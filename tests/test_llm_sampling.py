"""Whole texts under penalties, biases and bans against `generate` of transformers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_llama import EOS, save_llama
from transformers import LlamaForCausalLM

from assembler import LLM, SamplingParams

PROMPTS = ["Hello there", "a", "The sea, the sea!\n" * 4]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("llama")


@pytest.fixture(scope="module")
def reference(folder: Path) -> LlamaForCausalLM:
    return save_llama(folder)


@pytest.fixture(scope="module")
def llm(reference: LlamaForCausalLM, folder: Path) -> LLM:
    return LLM(folder)


def expected(reference: LlamaForCausalLM, token_ids: list[int], **settings: Any) -> list[int]:
    """What transformers generates greedily."""
    prompt = torch.tensor([token_ids])
    with torch.inference_mode():
        out = reference.generate(
            prompt,
            attention_mask=torch.ones_like(prompt),
            do_sample=False,
            max_new_tokens=20,
            pad_token_id=0,
            **settings,
        )
    return out[0, len(token_ids) :].tolist()


CASES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "repetition": ({"repetition_penalty": 1.5}, {"repetition_penalty": 1.5}),
    "favoured repetition": ({"repetition_penalty": 0.9}, {"repetition_penalty": 0.9}),
    "bias": (
        {"logit_bias": {EOS: 4.0, 70: 2.0}, "repetition_penalty": 1.4},
        {"sequence_bias": [[[EOS], 4.0], [[70], 2.0]], "repetition_penalty": 1.4},
    ),
    "minimum": (
        {"logit_bias": {EOS: 100.0}, "min_tokens": 7},
        {"sequence_bias": [[[EOS], 100.0]], "min_new_tokens": 7},
    ),
    "bad words": (
        {"bad_words": ["=7", "M"]},
        {"bad_words_ids": ["=7", "M", " =7", " M"]},
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_greedy_texts_are_those_of_transformers(case: str, llm: LLM, reference: LlamaForCausalLM):
    ours, theirs = CASES[case]
    if "bad_words_ids" in theirs:
        words = theirs["bad_words_ids"]
        theirs = {"bad_words_ids": [llm.get_tokenizer().encode(word) for word in words]}
    outputs = llm.generate(
        PROMPTS, SamplingParams(temperature=0.0, max_tokens=20, **ours), use_tqdm=False
    )
    for output in outputs:
        judged = expected(reference, output.prompt_token_ids, **theirs)
        assert output.outputs[0].token_ids == judged
    plain = llm.generate(PROMPTS, SamplingParams(temperature=0.0, max_tokens=20), use_tqdm=False)
    assert [o.outputs[0].token_ids for o in plain] != [o.outputs[0].token_ids for o in outputs]


def test_frequencies_of_drawn_tokens_are_the_model_s(llm: LLM, reference: LlamaForCausalLM):
    """One token of each of many samples, drawn by seeds, against transformers' probabilities."""
    count = 4000
    params = SamplingParams(temperature=1.0, top_k=6, seed=5, n=count, max_tokens=1)
    [output] = llm.generate("Hello", params, use_tqdm=False)
    with torch.inference_mode():
        logits = reference(torch.tensor([output.prompt_token_ids])).logits[0, -1]
    likeliest = logits.topk(6)
    drawn = [sample.token_ids[0] for sample in output.outputs]
    for token_id, share in zip(
        likeliest.indices.tolist(), likeliest.values.softmax(-1).tolist(), strict=True
    ):
        deviation = (share * (1 - share) / count) ** 0.5
        assert abs(drawn.count(token_id) / count - share) < 4.5 * deviation
    assert set(drawn) == set(likeliest.indices.tolist())


@pytest.mark.parametrize("stop", ["é", "aé", "éa", "éé"])
def test_a_stop_string_over_the_bytes_of_a_character(stop: str, llm: LLM):
    """Bytes are tokens here: the stop string is completed by the last byte of a character."""
    tokenizer = llm.get_tokenizer()
    ids = tokenizer.encode("aé")
    assert len(ids) == 3
    stopped = 0
    for seed in range(6):
        free = SamplingParams(
            temperature=5.0, seed=seed, max_tokens=60, allowed_token_ids=ids, ignore_eos=True
        )
        [output] = llm.generate("a", free, use_tqdm=False)
        token_ids = output.outputs[0].token_ids
        lengths = range(1, len(token_ids) + 1)
        # Bytes of no character become U+FFFD, which a character that is complete never does.
        ends = [n for n in lengths if stop in tokenizer.decode(token_ids[:n])]
        *_, last = llm.stream("a", free.with_(stop=stop))
        done = last.outputs[0]
        assert done.token_ids == token_ids[: ends[0] if ends else None]
        assert done.text == tokenizer.decode(token_ids).partition(stop)[0]
        assert done.stop_reason == (stop if ends else None)
        stopped += bool(ends)
    assert stopped > 1
