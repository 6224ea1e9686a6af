"""Pages found in the cache are as good as computed ones, whatever kind of attention reads them."""

from __future__ import annotations

from pathlib import Path

import pytest
from cases import VOCAB_SIZE, named
from tiny_checkpoints import make_checkpoint

from assembler import LLM, SamplingParams

PARAMS = SamplingParams(temperature=0.0, max_tokens=6, ignore_eos=True, logprobs=0)
SETTINGS = {"load": "dummy", "page_size": 4, "kv_cache_memory_bytes": 2 << 20, "seed": 1}
KINDS = {
    "windows": "qwen3-windows-tied",
    "windows and sinks": "gpt_oss-windows",
    "windows and caps": "gemma2-softcaps",
    "chunks": "llama4_text-chunks-scaled",
    "latents": "deepseek_v3-groups-yarn",
    "longrope": "phi3-longrope-long-text-tied",
    "dynamic rope": "llama-dynamic-rope-long-text",
    "alibi": "bloom-usual",
}


@pytest.mark.parametrize("kind", KINDS)
def test_cached_beginnings_change_nothing(kind: str, tmp_path: Path):
    make_checkpoint(named(KINDS[kind]), tmp_path)
    caching = LLM(tmp_path, **SETTINGS)
    plain = LLM(tmp_path, enable_prefix_caching=False, **SETTINGS)
    longest = min(caching.engine.max_model_len, 100) - 6
    text = [1 + n * n * 7 % (VOCAB_SIZE - 8) for n in range(longest)]
    prompts = [text[: longest * share // 8] for share in (8, 6, 3, 8, 5, 8)]
    for prompt in prompts:
        [found], [expected] = (
            llm.generate([prompt], PARAMS, use_tqdm=False) for llm in (caching, plain)
        )
        assert found.outputs[0].token_ids == expected.outputs[0].token_ids
        for ours, theirs in zip(
            found.outputs[0].logprobs, expected.outputs[0].logprobs, strict=True
        ):
            (token,) = theirs
            assert ours[token].logprob == pytest.approx(theirs[token].logprob, abs=3e-5)
    assert caching.engine.stats.num_cached_tokens >= 2 * (longest - 4)
