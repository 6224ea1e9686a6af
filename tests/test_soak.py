"""Requests of every kind, a cache that is too small, a model that fails: each ends as it should."""

from __future__ import annotations

import gc
import os
import random
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_llama import EOS, save_llama

from assembler import LLM, RequestOutput, SamplingParams
from assembler.engine.outputs import CompletionOutput
from assembler.errors import AssemblerError, RequestError

POISON = 255  # a token whose embedding is NaN
PAGE_BYTES = 2 * 4 * 2 * 8 * 4 * 3  # keys, values; 4 tokens; 2 heads of 8; float32; 3 layers
CAPACITY = 50 * 4
ENDS = {"stop", "length", "abort"}
WORDS = ["e", "th", "a ", "zq", "\n"]


class Client:
    """Sends random requests, aborts some of them, and checks how each one ends."""

    def __init__(self, llm: LLM, seed: int) -> None:
        self.engine = llm.engine
        self.tokenizer = llm.get_tokenizer()
        self.count = self.failed_steps = 0
        self.silent: set[str] = set()  # those that are reported once, at their end
        self.rng = random.Random(seed)
        self.open: dict[str, tuple[list[int], SamplingParams]] = {}
        self.reasons: dict[str, int] = {}
        self.beginnings = [[self.rng.randrange(255) for _ in range(90)] for _ in range(4)]

    def send(self) -> None:
        prompt, params = self.prompt(), self.params()
        most = min(params.max_tokens, CAPACITY - len(prompt))
        params = params.model_copy(update={"max_tokens": most})
        request_id, stream = str(self.count), self.rng.random() < 0.7
        self.count += 1
        self.engine.add_request(request_id, prompt, params, stream=stream)
        self.open[request_id] = (prompt, params)
        self.silent |= set() if stream else {request_id}

    def step(self) -> None:
        """Take a step; silent requests are reported on at their end."""
        try:
            outputs = self.engine.step()
        except OutOfLuckError as error:
            self.failed_steps += 1
            if self.rng.random() < 0.8:
                return  # all goes on
            for output in self.engine.abort_step(error):
                assert "OutOfLuckError" in str(output.error)
                self.end(output, aborted=True)
            return
        for output in outputs:
            assert output.finished or output.request_id not in self.silent
            if output.finished:
                self.end(output)

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
            "min_p": rng.choice([0.0, 0.0, 0.05]),
            "bad_words": rng.sample(WORDS[:4], rng.choice([0, 0, 2])),
            "allowed_token_ids": rng.choice([None, None, rng.sample(range(255), 120)]),
            "min_tokens": rng.choice([0, 0, 1, 5]),
            "include_stop_str_in_output": rng.random() < 0.3,
            "repetition_penalty": rng.choice([1.0, 1.2]),
            "logprobs": rng.choice([None, None, 0, 3]),
            "prompt_logprobs": rng.choice([None, None, None, 1]),
            "logit_bias": {POISON: -100.0},  # it comes in prompts only
        }
        temperature = 0.0 if greedy else rng.choice([0.7, 1.5])
        max_tokens = max(rng.choice([1, 2, 10, 40, 80]), some["min_tokens"])
        return SamplingParams(temperature=temperature, max_tokens=max_tokens, **some)

    def send_nonsense(self) -> None:
        """What must be refused, and leave nothing behind."""
        for prompt, params in (
            ([], {}),
            ([260], {}),
            ([1] * 90, {"max_tokens": 150}),
            ([1], {"stop_token_ids": [999]}),
            ([1], {"stop": 5}),
            ([1], {"min_tokens": 9, "max_tokens": 8}),
            ([1], {"bad_words": [""]}),
            ([1], {"allowed_token_ids": []}),
        ):
            with pytest.raises(AssemblerError):
                self.engine.add_request("nonsense", prompt, SamplingParams(**params))

    def abort_one(self) -> None:
        if self.open:
            request_id = self.rng.choice([*self.open])
            output = self.engine.abort(request_id)
            assert output.finished and output.request_id == request_id and output.error is None
            assert any(done.finish_reason == "abort" for done in output.outputs)
            self.end(output, aborted=True)

    def end(self, output: RequestOutput, *, aborted: bool = False) -> None:
        prompt, params = self.open.pop(output.request_id)  # ends once
        assert output.finished and len(output.outputs) == params.n
        poisoned = POISON in prompt
        assert aborted or isinstance(output.error, RequestError) == poisoned
        for done in output.outputs:
            reason = done.finish_reason
            self.reasons[reason] = self.reasons.get(reason, 0) + 1
            ends = set(params.stop_token_ids) | (set() if params.ignore_eos else {EOS})
            self.check_text(done, params)
            assert len(done.token_ids) <= params.max_tokens
            assert not ends & set(done.token_ids[:-1])
            assert params.logprobs is None or len(done.logprobs) == len(done.token_ids)
            if poisoned or reason == "abort":
                assert reason == "abort" and (poisoned or aborted)
                continue
            assert len(done.token_ids) >= params.min_tokens
            if reason == "length":
                assert len(done.token_ids) == params.max_tokens
                assert done.token_ids[-1] not in ends
            else:
                assert reason == "stop"
                assert done.token_ids[-1] in ends or done.stop_reason in params.stop

    def check_text(self, done: CompletionOutput, params: SamplingParams) -> None:
        """What must not be in an output, and what must."""
        text, ids = done.text, done.token_ids
        if params.include_stop_str_in_output and done.stop_reason in params.stop:
            assert text.endswith(done.stop_reason)
            text = text[: -len(done.stop_reason)]
        if not params.min_tokens:  # else one may stand before them
            assert not any(stop in text for stop in params.stop)
        assert {*ids} <= {*(params.allowed_token_ids or ids)}
        for word in params.bad_words:
            word_ids = self.tokenizer.encode(word, add_special_tokens=False)
            places = range(len(ids) - len(word_ids) + 1)
            assert not any(ids[place : place + len(word_ids)] == word_ids for place in places)


class OutOfLuckError(RuntimeError):
    """What the model raises."""


def fail_now_and_then(llm: LLM, seed: int) -> None:
    """Let one step in fifty raise, before it has run or after."""
    rng, run = random.Random(seed), llm.engine.model_runner.run

    def unreliable(*args: Any) -> torch.Tensor:
        luck = rng.random()
        if luck < 0.01:
            raise OutOfLuckError("before")
        logits = run(*args)
        if luck > 0.99:
            raise OutOfLuckError("behind")
        return logits

    llm.engine.model_runner.run = unreliable


def resident_bytes() -> int:
    gc.collect()
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def starving_llm(folder: Path, prefix_caching: bool, overlap: bool) -> LLM:
    """With room for 50 pages of 4 tokens; one token of its vocabulary is poison."""
    save_llama(folder)
    llm = LLM(
        folder,
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
    fail_now_and_then(llm, seed=2)
    return llm


def soak(llm: LLM, num_requests: int) -> tuple[Client, int]:
    """Serve so many requests; the client, and the resident bytes when a quarter was sent."""
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
        client.step()
    assert llm.is_finished()
    llm.engine.check_integrity()
    return client, early


@pytest.mark.parametrize("overlap", [False, True])
def test_sixty_requests_end_as_they_should(overlap: bool, tmp_path: Path):
    llm = starving_llm(tmp_path, prefix_caching=True, overlap=overlap)
    client, _ = soak(llm, 60)
    assert client.failed_steps > 0 and client.silent and {*client.reasons} == ENDS
    assert llm.engine.stats.num_preemptions > 0


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="reads Linux's /proc")
@pytest.mark.parametrize(
    ("prefix_caching", "overlap", "num_requests"),
    [(True, False, 2000), (False, False, 500), (True, True, 600)],
)
def test_every_request_ends_as_it_should(
    prefix_caching: bool, overlap: bool, num_requests: int, tmp_path: Path
):
    llm = starving_llm(tmp_path, prefix_caching, overlap)
    client, early = soak(llm, num_requests)
    stats = llm.engine.stats
    assert client.failed_steps > 10 and {*client.reasons} == ENDS
    assert stats.num_preemptions > 100 and min(client.reasons.values()) > 50, client.reasons
    assert stats.num_cached_tokens > (10_000 if prefix_caching else 0)  # samples always share
    assert resident_bytes() - early < 4 << 20
