"""Putting an engine around a loaded model: how long, how many pages, and the parts."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import nn

from assembler.engine.admission import TokenizerLike
from assembler.engine.cuda_graphs import GraphSettings, graph_memory, graph_settings
from assembler.engine.kv_cache import (
    cache_budget,
    cache_specs,
    length_border,
    pages_in_budget,
)
from assembler.engine.lengths import check_lengths, max_model_len, max_num_batched_tokens
from assembler.engine.llm_engine import LLMEngine
from assembler.engine.model_runner import ModelRunner
from assembler.engine.options import EngineOptions
from assembler.engine.overlap import runs_asynchronously
from assembler.engine.page_pool import PagePool
from assembler.engine.peers import Peers
from assembler.engine.sampler import Sampler
from assembler.engine.scheduled_batch import most_logit_rows
from assembler.engine.scheduler import Scheduler
from assembler.engine.step_memory import step_memory
from assembler.errors import OptionError

if TYPE_CHECKING:
    from assembler.kernels.dispatch import AttentionBackend


def build_engine(
    model: nn.Module,
    attention_backend: AttentionBackend,
    tokenizer: TokenizerLike | None,
    options: EngineOptions,
    *,
    vocab_size: int,
    model_length: int | None,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
    peers: Peers | None = None,
) -> LLMEngine:
    """An engine that generates with `model`.

    Args:
        tokenizer: None: prompts are token ids and outputs have no text.
        vocab_size: rows of the model's embedding.
        model_length: the longest sequence the model was made for; None: it does not say.
        dtype: of the cached keys and values, unless `options.kv_cache_dtype` says otherwise.
        peers: the other ranks of the model; each calls `build_runner`.

    Raises:
        OptionError: the options contradict each other, the model or the memory.
    """
    runner = build_runner(
        model,
        attention_backend,
        options,
        model_length=model_length,
        device=device,
        dtype=dtype,
        peers=peers,
    )
    scheduler = Scheduler(
        PagePool(runner.num_pages, options.page_size),
        max_num_batched_tokens=max_num_batched_tokens(options, model_length),
        max_num_seqs=options.max_num_seqs,
        chunked_prefill=options.enable_chunked_prefill,
    )
    return LLMEngine(
        runner,
        scheduler,
        tokenizer,
        vocab_size=vocab_size,
        max_model_len=max_model_len(options, model_length),
        prefix_caching=options.enable_prefix_caching,
        length_border=length_border(model),
        max_logprobs=options.max_logprobs,
        overlap=_overlaps(options.overlap_scheduling, torch.device(device), peers),
    )


def _overlaps(wanted: bool | None, device: torch.device, peers: Peers | None) -> bool:
    """Whether steps overlap; ranks run each one together."""
    if wanted and peers is not None:
        raise OptionError(
            "overlap_scheduling=true: ranks that share a model run each step together. Leave it "
            "out, or use tensor_parallel_size=1."
        )
    return runs_asynchronously(device) and peers is None if wanted is None else wanted


def build_runner(
    model: nn.Module,
    attention_backend: AttentionBackend,
    options: EngineOptions,
    *,
    model_length: int | None,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
    peers: Peers | None = None,
) -> ModelRunner:
    """What runs the steps, on every rank, with a cache of as many pages as all ranks can afford."""
    check_lengths(options, model_length)
    device = torch.device(device)
    if options.kv_cache_dtype == "fp8":
        dtype = torch.float8_e4m3fn
    graphs = None
    if not options.enforce_eager:
        alone = peers is None
        sizes = options.max_num_seqs, max_model_len(options, model_length)
        graphs = graph_settings(*sizes, device, attention_backend, alone)
    num_pages = _num_pages(model, options, model_length, device, dtype, peers, graphs)
    runner = ModelRunner(
        model,
        attention_backend,
        num_pages=num_pages if peers is None else peers.fewest(num_pages),
        page_size=options.page_size,
        device=device,
        dtype=dtype,
        sampler=Sampler(options.seed),
        peers=peers,
        enforce_eager=options.enforce_eager,
        graphs=graphs,
    )
    if device.type == "cuda" and attention_backend.name == "triton":
        runner.warm_up(max_model_len(options, model_length))
    return runner


def _num_pages(
    model: nn.Module,
    options: EngineOptions,
    model_length: int | None,
    device: torch.device,
    dtype: torch.dtype,
    peers: Peers | None,
    graphs: GraphSettings | None,
) -> int:
    """Pages of the cache: what the budget holds, but no more than are of use."""
    sharing = 1 if peers is None or device.type != "cpu" else peers.size
    budget = options.kv_cache_memory_bytes
    if budget is None:
        step = 0  # on a CPU the cache leaves more than any step takes
        if device.type != "cpu":
            num_tokens = max_num_batched_tokens(options, model_length)
            rows = most_logit_rows(options.max_num_seqs, num_tokens, options.enable_chunked_prefill)
            step = step_memory(model, num_tokens, rows)
            step += 0 if graphs is None else graph_memory(graphs, model)
        budget = cache_budget(device, options.gpu_memory_utilization, sharing, step)
    pages = pages_in_budget(budget, cache_specs(model), options.page_size, dtype)
    return min(pages, _useful_pages(options, max_model_len(options, model_length)) or pages)


def _useful_pages(options: EngineOptions, longest: int) -> int | None:
    """How many pages are of use; None: as many as there are.

    With prefix caching every page beyond those in use may hold a beginning that comes again. Of
    memory that the user has allotted all is taken; by default it is as much as can be in use, and
    as much again. (Blank pages are used before known ones, so in time a process touches them all:
    a small model shall not grow to a quarter of the machine.)
    """
    in_use = options.max_num_seqs * -(-longest // options.page_size)
    if not options.enable_prefix_caching:
        return in_use
    is_default = options.kv_cache_memory_bytes is None and options.gpu_memory_utilization is None
    return 2 * in_use if is_default else None
