"""Thousands of requests of every kind through a cache that is too small: each ends as it should."""

from __future__ import annotations

import gc
import os
import random
from pathlib import Path

import pytest
import torch
from tiny_llama import EOS, save_llama

from assembler import LLM, RequestOutput, SamplingParams
from assembler.errors import AssemblerError, RequestError

POISON = 255  # a token whose embedding is NaN
PAGE_BYTES = 2 * 4 * 2 * 8 * 4 * 3  # keys, values; 4 tokens; 2 heads of 8; float32; 3 layers
CAPACITY = 50 * 4
WORDS = ["e", "th", "a ", "zq", "\n"]


class Client:
    """Sends random requests, aborts some of them, and checks how each one ends."""

    def __init__(self, llm: LLM, seed: int) -> None:
        self.llm = llm
        self.rng = random.Random(seed)
        self.open: dict[str, tuple[list[int], SamplingParams]] = {}
        self.reasons: dict[str, int] = {}
        beginnings = [[self.rng.randrange(255) for _ in range(90)] for _ in range(4)]
        self.beginnings = beginnings

    def send(self) -> None:
        prompt, params = self.prompt(), self.params()
        params = params.model_copy(
            update={"max_tokens": min(params.max_tokens or 50, CAPACITY - len(prompt))}
        )
        self.open[self.llm.add_request(prompt, params)] = (prompt, params)

    def prompt(self) -> list[int]:
        rng = self.rng
        prompt = [rng.randrange(255) for _ in range(rng.choice([1, 2, 5, 20, 90]))]
        if rng.random() < 0.5:
            prompt = rng.choice(self.beginnings)[: rng.randint(1, 90)] + prompt[:20]
        if rng.random() < 0.03:
            prompt[rng.randrange(len(prompt))] = POISON
        return prompt

    def params(self) -> SamplingParams:
        rng = self.rng
        greedy = rng.random() < 0.3
        some = {
            "n": 1 if greedy else rng.choice([1, 1, 1, 2, 3]),
            "seed": rng.choice([None, rng.randrange(1000)]),
            "stop": rng.sample(WORDS, rng.randint(0, 2)),
            "stop_token_ids": rng.sample(range(255), rng.randint(0, 4)),
            "ignore_eos": rng.random() < 0.3,
            "top_k": rng.choice([0, 5]),
            "top_p": rng.choice([1.0, 0.8]),
            "repetition_penalty": rng.choice([1.0, 1.2]),
            "logprobs": rng.choice([None, None, 0, 3]),
            "prompt_logprobs": rng.choice([None, None, None, 1]),
            "logit_bias": {POISON: -100.0},  # it comes in prompts only
        }
        temperature = 0.0 if greedy else rng.choice([0.7, 1.5])
        max_tokens = rng.choice([1, 2, 10, 40, 80])
        return SamplingParams(temperature=temperature, max_tokens=max_tokens, **some)

    def send_nonsense(self) -> None:
        """What must be refused, and leave nothing behind."""
        for prompt, params in (
            ([], {}),
            ([260], {}),
            ([1] * 90, {"max_tokens": 150}),
            ([1], {"stop_token_ids": [999]}),
            ([1], {"stop": 5}),
        ):
            with pytest.raises(AssemblerError):
                self.llm.add_request(prompt, SamplingParams(**params))

    def abort_one(self) -> None:
        if self.open:
            request_id = self.rng.choice([*self.open])
            output = self.llm.abort(request_id)
            assert output.finished and output.request_id == request_id
            assert any(done.finish_reason == "abort" for done in output.outputs)
            self.end(output, aborted=True)

    def end(self, output: RequestOutput, *, aborted: bool = False) -> None:
        prompt, params = self.open.pop(output.request_id)  # ends once
        assert output.finished and len(output.outputs) == params.n
        poisoned = POISON in prompt
        assert isinstance(output.error, RequestError) == (poisoned and not aborted)
        for done in output.outputs:
            reason = done.finish_reason
            self.reasons[reason] = self.reasons.get(reason, 0) + 1
            ends = set(params.stop_token_ids) | (set() if params.ignore_eos else {EOS})
            assert not any(stop in done.text for stop in params.stop)
            assert len(done.token_ids) <= params.max_tokens
            assert not ends & set(done.token_ids[:-1])
            assert params.logprobs is None or len(done.logprobs) == len(done.token_ids)
            if poisoned or reason == "abort":
                assert reason == "abort" and (poisoned or aborted)
            elif reason == "length":
                assert len(done.token_ids) == params.max_tokens
                assert done.token_ids[-1] not in ends
            else:
                assert reason == "stop"
                assert done.token_ids[-1] in ends or done.stop_reason in params.stop


def resident_bytes() -> int:
    gc.collect()
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="reads Linux's /proc")
@pytest.mark.parametrize(
    ("prefix_caching", "overlap", "num_requests"),
    [(True, False, 2000), (False, False, 500), (True, True, 600)],
)
def test_every_request_ends_as_it_should(
    prefix_caching: bool, overlap: bool, num_requests: int, tmp_path: Path
):
    save_llama(tmp_path)
    llm = LLM(
        tmp_path,
        page_size=4,
        kv_cache_memory_bytes=50 * PAGE_BYTES,
        max_num_seqs=10,
        max_num_batched_tokens=40,
        enable_prefix_caching=prefix_caching,
        overlap_scheduling=overlap,
        seed=0,
    )
    with torch.no_grad():
        llm.model.embed.weight[POISON] = torch.nan
    client = Client(llm, seed=1)
    sent, early = 0, 0
    while sent < num_requests or client.open:
        if sent < num_requests and len(client.open) < 25:
            client.send()
            sent += 1
            if sent % 50 == 0:
                client.send_nonsense()
                llm.engine.check_integrity()
            if sent == num_requests // 4:
                early = resident_bytes()
        elif client.rng.random() < 0.05:
            client.abort_one()
        for output in llm.step():
            if output.finished:
                client.end(output)
    assert llm.is_finished()
    llm.engine.check_integrity()
    stats = llm.engine.stats
    assert stats.num_preemptions > 100 and min(client.reasons.values()) > 50, client.reasons
    assert stats.num_cached_tokens > (10_000 if prefix_caching else 0)  # samples always share
    assert resident_bytes() - early < 4 << 20
