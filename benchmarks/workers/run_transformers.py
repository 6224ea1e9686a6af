"""transformers. Variants: `generate`, `compiled` (static cache) and `continuous` batching.

`generate` takes a batch padded on the left, and runs until the longest output is done.
"""

from __future__ import annotations

from typing import Any

import torch
from protocol import Generate, Settings, serve
from transformers import AutoModelForCausalLM, ContinuousBatchingConfig, GenerationConfig

PAGE = 256  # tokens of a page of the continuous batching's cache, its default


def load(settings: Settings) -> Generate:
    torch.set_num_threads(settings.threads)
    dtype = getattr(torch, settings.dtype)
    model = AutoModelForCausalLM.from_pretrained(settings.model, dtype=dtype).eval()
    model.generation_config.eos_token_id = None  # nothing ends early
    if settings.variant == "continuous":
        return continuous(model, settings)
    return padded(model, compiled=settings.variant == "compiled")


def padded(model: Any, compiled: bool) -> Generate:
    """`generate`; compiled, it keeps keys and values in tensors of one size."""
    how = {"cache_implementation": "static"} if compiled else {"disable_compile": True}

    @torch.inference_mode()
    def generate(prompts: list[list[int]], counts: list[int]) -> list[list[int]]:
        width, count = max(map(len, prompts)), max(counts)
        pads = [width - len(prompt) for prompt in prompts]
        ids = torch.tensor([[0] * n + p for n, p in zip(pads, prompts, strict=True)])
        mask = torch.tensor([[0] * n + [1] * (width - n) for n in pads])
        outputs = model.generate(
            ids,
            attention_mask=mask,
            max_new_tokens=count,
            min_new_tokens=count,
            do_sample=False,
            pad_token_id=0,
            **how,
        )
        rows = outputs[:, width:].tolist()
        return [row[:n] for row, n in zip(rows, counts, strict=True)]

    if compiled:
        # Only a device it knows is compiled for unasked; the user asks by compiling `forward`.
        model.forward = torch.compile(model.forward)
    return generate


def continuous(model: Any, settings: Settings) -> Generate:
    """`generate_batch`'s scheduler, kept from batch to batch."""
    pages = -(-settings.cache_tokens // PAGE)
    config = ContinuousBatchingConfig(
        num_blocks=pages,
        max_batch_tokens=2048,
        max_requests_per_batch=settings.max_seqs,
        allow_block_sharing=False,
    )
    greedy = GenerationConfig(do_sample=False, eos_token_id=-1, pad_token_id=0)
    manager = model.init_continuous_batching(
        generation_config=greedy, continuous_batching_config=config
    )
    manager.start()

    def generate(prompts: list[list[int]], counts: list[int]) -> list[list[int]]:
        ids = [
            manager.add_request(prompt, max_new_tokens=n)
            for prompt, n in zip(prompts, counts, strict=True)
        ]
        tokens: dict[str, list[int]] = {}
        while len(tokens) < len(ids):
            result = manager.get_result(timeout=1)
            if result is None and not manager.is_running():
                raise RuntimeError("the continuous batching has stopped: see the log above")
            if result is not None and result.is_finished():
                tokens[result.request_id] = list(result.generated_tokens)
        return [tokens[request_id] for request_id in ids]

    return generate


if __name__ == "__main__":
    serve(load, ("transformers", "torch"))
