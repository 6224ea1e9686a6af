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
from assembler.engine.llm_engine import LLMEngine
from assembler.engine.model_runner import ModelRunner
from assembler.engine.options import EngineOptions
from assembler.engine.page_pool import PagePool
from assembler.engine.peers import Peers
from assembler.engine.sampler import Sampler
from assembler.engine.scheduled_batch import most_logit_rows
from assembler.engine.scheduler import Scheduler
from assembler.engine.step_memory import step_memory
from assembler.errors import OptionError

if TYPE_CHECKING:
    from assembler.kernels.dispatch import AttentionBackend

# Of a model that states no length, in an engine that is given none.
DEFAULT_MAX_MODEL_LEN = 8192
# Where the user names none. Longer steps hardly run faster, and decodes would wait for them.
DEFAULT_MAX_NUM_BATCHED_TOKENS = 2048


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
    max_model_len = _max_model_len(options.max_model_len, model_length)
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
        max_num_batched_tokens=_max_num_batched_tokens(options, max_model_len),
        max_num_seqs=options.max_num_seqs,
        chunked_prefill=options.enable_chunked_prefill,
    )
    return LLMEngine(
        runner,
        scheduler,
        tokenizer,
        vocab_size=vocab_size,
        max_model_len=max_model_len,
        prefix_caching=options.enable_prefix_caching,
        length_border=length_border(model),
    )


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
    device = torch.device(device)
    if options.kv_cache_dtype == "fp8":
        dtype = torch.float8_e4m3fn
    max_model_len = _max_model_len(options.max_model_len, model_length)
    graphs = None
    if not options.enforce_eager:
        alone = peers is None
        sizes = options.max_num_seqs, max_model_len
        graphs = graph_settings(*sizes, device, attention_backend, alone)
    num_pages = _num_pages(model, options, max_model_len, device, dtype, peers, graphs)
    return ModelRunner(
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


def _max_model_len(wanted: int | None, model_length: int | None) -> int:
    """The longest sequence the engine serves."""
    if wanted is None:
        return model_length or DEFAULT_MAX_MODEL_LEN
    if model_length is not None and wanted > model_length:
        raise OptionError(
            f"max_model_len={wanted} is more than the {model_length} tokens the model was made "
            f"for. Lower it, or leave it out to use them all."
        )
    return wanted


def _max_num_batched_tokens(options: EngineOptions, max_model_len: int) -> int:
    """The tokens of a step; where prompts are not cut, any sequence must fit one."""
    wanted = options.max_num_batched_tokens
    if wanted is None:
        least = options.max_num_seqs
        if not options.enable_chunked_prefill:
            least = max(least, max_model_len)
        return max(least, DEFAULT_MAX_NUM_BATCHED_TOKENS)
    if not options.enable_chunked_prefill and wanted < max_model_len:
        raise OptionError(
            f"max_num_batched_tokens={wanted} is less than max_model_len={max_model_len}: with "
            "enable_chunked_prefill=false a sequence runs in one step. Raise the first, lower the "
            "second, or leave chunked prefill on."
        )
    return wanted


def _num_pages(
    model: nn.Module,
    options: EngineOptions,
    max_model_len: int,
    device: torch.device,
    dtype: torch.dtype,
    peers: Peers | None,
    graphs: GraphSettings | None,
) -> int:
    """Pages of the cache: what the budget holds, but no more than can ever be in use."""
    sharing = 1 if peers is None or device.type != "cpu" else peers.size
    budget = options.kv_cache_memory_bytes
    if budget is None:
        step = 0  # on a CPU the cache leaves more than any step takes
        if device.type != "cpu":
            num_tokens = _max_num_batched_tokens(options, max_model_len)
            rows = most_logit_rows(options.max_num_seqs, num_tokens, options.enable_chunked_prefill)
            step = step_memory(model, num_tokens, rows)
            step += 0 if graphs is None else graph_memory(graphs, model)
        budget = cache_budget(device, options.gpu_memory_utilization, sharing, step)
    pages = pages_in_budget(budget, cache_specs(model), options.page_size, dtype)
    return min(pages, options.max_num_seqs * -(-max_model_len // options.page_size))
