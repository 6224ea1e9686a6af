"""Where the time of a prefill and of a decode goes, kernel by kernel."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING

from assembler.benching.program_times import program_kernels
from assembler.benching.step_kernels import StepKernels
from assembler.benching.torch_times import torch_kernels
from assembler.engine.sampling_params import SamplingParams
from assembler.engine.scheduled_batch import ScheduledBatch, ScheduledSequence
from assembler.engine.sequence import Sequence
from assembler.engine.step_inputs import StepInputs

if TYPE_CHECKING:
    from assembler.llm import LLM


def step_kernels(llm: LLM, tokens: int, rounds: int) -> list[StepKernels]:
    """The kernels of a prefill of `tokens` and of a decode behind it, each run `rounds` times.

    Nothing may be running in `llm`, and it must not look for prefixes: its cache is overwritten.
    [] where the model or its cache is too short for it.
    """
    pool, engine = llm.engine.scheduler.page_pool, llm.engine
    tokens = min(tokens, engine.scheduler.max_num_batched_tokens, pool.capacity - rounds - 3)
    tokens = min(tokens, engine.max_model_len - rounds - 3)
    if tokens < 1:
        return []
    draw = random.Random(2)
    prompt = [draw.randrange(llm.spec.vocab_size) for _ in range(tokens)]
    return [
        _kernels(f"prefill of {tokens}", llm, prompt, 0, rounds),
        _kernels(f"decode, context {tokens + 1}", llm, [*prompt, 0], tokens, rounds),
    ]


def _kernels(name: str, llm: LLM, token_ids: list[int], start: int, rounds: int) -> StepKernels:
    """Those of the step that runs `token_ids[start:]`, in the way in which the engine runs it."""
    runner = llm.engine.model_runner
    compiled = runner.compiled_step
    step = StepInputs.of(_batch(llm, token_ids, start), runner.page_size)
    input_ids, ctx = runner.model_inputs(step)
    if compiled is not None and compiled.fits(len(input_ids)):
        return program_kernels(name, compiled, input_ids, ctx, rounds)
    return torch_kernels(name, llm, token_ids, rounds, decodes=start > 0)


def _batch(llm: LLM, token_ids: list[int], start: int) -> ScheduledBatch:
    """A step of one sequence, in the first pages."""
    params, length = SamplingParams(temperature=0), len(token_ids)
    sequence = Sequence("bench", token_ids, params, max_length=length + 1)
    sequence.pages = list(range(llm.engine.scheduler.page_pool.pages_for(length)))
    return ScheduledBatch([ScheduledSequence(sequence, start, length - start, samples=True)])
