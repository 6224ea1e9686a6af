"""Whole tiny models on the device, with graphs and without, against plain torch on the CPU."""

from __future__ import annotations

import random
import tempfile
from collections.abc import Callable, Iterator
from functools import cache, partial
from pathlib import Path

import torch
from gpu_configs import TINY, write_config

from assembler import LLM, SamplingParams

Requests = list[tuple[list[int], int]]  # prompt and number of new tokens


def model_checks(
    device: torch.device, smoke: bool
) -> Iterator[tuple[str, Callable[[], float], float]]:
    """What, the share of greedy tokens that differ (in float32), and how many may: none."""
    wanted = requests(3 if smoke else 24, 4 if smoke else 40)
    for name in ["qwen3"] if smoke else TINY:
        reference = cache(partial(_reference, name, tuple(map(_frozen, wanted))))
        for eager in [True] if device.type == "cpu" else [True, False]:
            how = "eager" if eager else "CUDA graphs"
            check = partial(_differing, name, device, eager, wanted, reference)
            yield f"{name}, mixed batches, {how}", check, 0.0


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


def _frozen(request: tuple[list[int], int]) -> tuple[tuple[int, ...], int]:
    return tuple(request[0]), request[1]


def _reference(
    name: str, wanted: tuple[tuple[tuple[int, ...], int], ...]
) -> tuple[dict[str, torch.Tensor], list[list[int]]]:
    """The weights, and what plain torch generates with them."""
    llm = load_dummy(TINY[name], device="cpu", attention="torch", enforce_eager=True)
    return llm.model.state_dict(), generate(llm, [(list(p), n) for p, n in wanted])


def _differing(
    name: str,
    device: torch.device,
    eager: bool,
    wanted: Requests,
    reference: Callable[[], tuple[dict[str, torch.Tensor], list[list[int]]]],
) -> float:
    weights, expected = reference()
    llm = load_dummy(TINY[name], device=str(device), attention="triton", enforce_eager=eager)
    llm.model.load_state_dict(weights)  # in place: graphs read where they read before
    got = generate(llm, wanted)
    if not eager and not llm.engine.stats.num_graph_steps:
        return 1.0  # nothing was replayed
    pairs = [
        a != b
        for mine, theirs in zip(got, expected, strict=True)
        for a, b in zip(mine, theirs, strict=True)
    ]
    return sum(pairs) / len(pairs)


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


def generate(llm: LLM, wanted: Requests) -> list[list[int]]:
    params = [SamplingParams(temperature=0, max_tokens=n, ignore_eos=True) for _, n in wanted]
    outputs = llm.generate([prompt for prompt, _ in wanted], params, use_tqdm=False)
    return [output.outputs[0].token_ids for output in outputs]
