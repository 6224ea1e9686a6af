"""This engine. Variant `eager`: without the compiled kernels."""

from __future__ import annotations

import torch
from protocol import Generate, Settings, serve

from assembler import LLM, SamplingParams


def load(settings: Settings) -> Generate:
    torch.set_num_threads(settings.threads)
    llm = LLM(
        settings.model,
        dtype=settings.dtype,
        max_model_len=settings.max_len,
        max_num_seqs=settings.max_seqs,
        enable_prefix_caching=False,  # the same prompts come again in every round
        enforce_eager=settings.variant == "eager",
    )

    def generate(prompts: list[list[int]], counts: list[int]) -> list[list[int]]:
        params = [SamplingParams(temperature=0, max_tokens=n, ignore_eos=True) for n in counts]
        outputs = llm.generate(prompts, params, use_tqdm=False)
        return [list(output.outputs[0].token_ids) for output in outputs]

    return generate


if __name__ == "__main__":
    serve(load, ("torch",))
