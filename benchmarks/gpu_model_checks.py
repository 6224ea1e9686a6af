"""Whole tiny models on the device, with graphs and without, against plain torch on the CPU."""

from __future__ import annotations

import math
import random
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path

import torch
from gpu_configs import TINY, write_config
from gpu_errors import Check, name_of

from assembler import LLM, SamplingParams
from assembler.engine.outputs import Logprob

Requests = list[tuple[list[int], int]]  # prompt and number of new tokens
# How much likelier one token may be than another that rounding puts in its place. Two tokens of
# these models are 0.05 apart on average (measured on a CPU).
GAPS = {torch.float32: 1e-4, torch.bfloat16: 2e-2}


@dataclass(frozen=True)
class Reference:
    """Weights, what was generated with them, and the likeliest tokens at each place of it."""

    weights: dict[str, torch.Tensor]
    token_ids: list[list[int]]
    logprobs: list[list[dict[int, Logprob]]]


def model_checks(device: torch.device, smoke: bool) -> Iterator[Check]:
    """What, by how much tokens were preferred that rounding does not explain, and what it does.

    In float32 plain torch on the CPU is the reference; in bfloat16, which sums elsewhere round
    otherwise, the same device without graphs.
    """
    wanted = requests(3 if smoke else 24, 4 if smoke else 40)
    on_cpu = {"device": "cpu", "attention": "torch", "enforce_eager": True}
    eager = {"device": str(device), "attention": "triton", "enforce_eager": True}
    on_gpu = device.type != "cpu"
    graphs = eager | {"enforce_eager": not on_gpu}
    for name in ["qwen3"] if smoke else TINY:
        exact = cache(partial(_reference, name, torch.float32, wanted, on_cpu))
        rounded = cache(partial(_reference, name, torch.bfloat16, wanted, eager))
        checks = [("eager", exact, torch.float32, eager)]
        if on_gpu:
            checks.append(("CUDA graphs", exact, torch.float32, graphs))
        again = "CUDA graphs beside eager" if on_gpu else "eager again"
        checks.append((again, rounded, torch.bfloat16, graphs))
        for how, reference, dtype, options in checks:
            check = partial(_error, name, dtype, wanted, options, reference)
            yield f"{name}, mixed batches, {how}, {name_of(dtype)}", check, GAPS[dtype]


def requests(count: int, longest: int) -> Requests:
    """Prompts and outputs of many lengths, so that steps mix prefills and decodes."""
    rng = random.Random(0)
    return [
        (
            [rng.randrange(300) for _ in range(rng.randint(1, 3 * longest))],
            rng.randint(2, longest),
        )
        for _ in range(count)
    ]


def _reference(
    name: str, dtype: torch.dtype, wanted: Requests, options: dict[str, object]
) -> Reference:
    llm = load_dummy(TINY[name], name_of(dtype), **options)
    outputs = generate(llm, wanted, logprobs=5)
    weights = {name: tensor.cpu() for name, tensor in llm.model.state_dict().items()}
    return Reference(weights, [o.token_ids for o in outputs], [o.logprobs for o in outputs])


def _error(
    name: str,
    dtype: torch.dtype,
    wanted: Requests,
    options: dict[str, object],
    reference: Callable[[], Reference],
) -> float:
    expected = reference()
    llm = load_dummy(TINY[name], name_of(dtype), **options)
    llm.model.load_state_dict(expected.weights)  # in place: graphs read where they read before
    outputs = generate(llm, wanted)
    if not options["enforce_eager"] and not llm.engine.stats.num_graph_steps:
        return math.inf  # nothing was replayed
    return max(
        preferred(tokens, logprobs, output.token_ids)
        for tokens, logprobs, output in zip(
            expected.token_ids, expected.logprobs, outputs, strict=True
        )
    )


def preferred(wanted: list[int], logprobs: list[dict[int, Logprob]], got: list[int]) -> float:
    """How much likelier the reference found its own token where `got` first has another.

    0 where nothing differs; infinite where the other token is none of its likeliest, or lengths
    differ. What follows two tokens that are as likely cannot be compared.
    """
    if len(got) != len(wanted):
        return math.inf
    for mine, theirs, likeliest in zip(got, wanted, logprobs, strict=True):
        if mine != theirs:
            if mine not in likeliest:
                return math.inf
            return likeliest[theirs].logprob - likeliest[mine].logprob
    return 0.0


def load_dummy(config: dict, dtype: str = "float32", **options: object) -> LLM:
    """A model of random weights; small steps, so that prompts come in chunks beside decodes."""
    limits = {"max_num_seqs": 16, "max_num_batched_tokens": 64, "max_model_len": 256}
    with tempfile.TemporaryDirectory() as folder:
        file = write_config(Path(folder), config)
        return LLM(
            file,
            load="dummy",
            dtype=dtype,
            seed=0,
            kv_cache_memory_bytes=16 << 20,
            **limits,
            **options,
        )


def generate(llm: LLM, wanted: Requests, logprobs: int | None = None) -> list:
    """The greedy completions of all requests."""
    params = [
        SamplingParams(temperature=0, max_tokens=n, ignore_eos=True, logprobs=logprobs)
        for _, n in wanted
    ]
    outputs = llm.generate([prompt for prompt, _ in wanted], params, use_tqdm=False)
    return [output.outputs[0] for output in outputs]
