"""One rank's part of bringing a model up: meet the other ranks, then load a share of the weights.

Rank 0 goes on to the engine and the user (`LLM`), every other rank to `serve_rank`.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from assembler.blocks.parallel import TensorParallel
from assembler.distributed.failures import Report
from assembler.distributed.launch import Launch, find_launch
from assembler.distributed.ranks import Ranks
from assembler.distributed.start import join_ranks, start_ranks
from assembler.engine.build import build_runner
from assembler.engine.kv_cache import attention_uses, cache_specs, pages_in_budget
from assembler.engine.lengths import check_lengths
from assembler.errors import OptionError
from assembler.kernels.dispatch import AttentionBackend, attention_backend
from assembler.llm_options import LLMOptions
from assembler.loading import Assembly, assemble, load_weights


@dataclass(frozen=True)
class RankModel:
    """A loaded share of a model (all of it where there is one rank), and where it runs."""

    assembly: Assembly
    model: nn.Module
    backend: AttentionBackend
    device: torch.device
    dtype: torch.dtype


def meet_ranks(model: str | Path | None, options: LLMOptions) -> Ranks | None:
    """The ranks that share the model: those of this launch, else started here; None for one rank.

    In a launch it returns in rank 0 only. The other ranks serve it until it ends and then leave
    their process, as they would otherwise run the rest of the program a second time.

    Raises:
        OptionError: launched ranks and `tensor_parallel_size` differ, or there are too few GPUs.
        AssemblerError: the model cannot be split that way or does not load; no rank was started.
    """
    size = options.tensor_parallel_size
    launch = find_launch(size)
    if size == 1:
        return None
    device = rank_device(options, 0 if launch is None else launch.local_rank)
    if launch is None:
        _refuse_early(model, options)
        job = {
            "model": None if model is None else str(model),
            "options": options.model_dump_json(),
        }
        return start_ranks("assembler.rank_worker", size, job, device)
    ranks = join_ranks(launch, device)
    if launch.rank == 0:
        return ranks
    _serve_launch(ranks, model, options, launch)
    raise SystemExit(0)


def load_rank(
    model: str | Path | None,
    options: LLMOptions,
    ranks: Ranks | None,
    progress: Callable[[int, int], None] | None = None,
    local_rank: int = 0,
) -> RankModel:
    """Load this rank's share. Between two tensors rank 0 looks whether the others are alive."""
    tp = None if ranks is None else ranks.tp
    device = rank_device(options, local_rank)
    assembly = _assemble(model, options, tp)
    dtype = _dtype(options.dtype, device, assembly.config)
    cache_dtype = torch.float8_e4m3fn if options.kv_cache_dtype == "fp8" else dtype
    if options.kv_cache_memory_bytes is not None:  # refused before weights are read
        budget, specs = options.kv_cache_memory_bytes, cache_specs(assembly.model)
        pages_in_budget(budget, specs, options.page_size, cache_dtype)
    uses = attention_uses(assembly.model, dtype, cache_dtype, options.page_size)
    backend = attention_backend(options.attention, device, uses)

    def report(done: int, total: int) -> None:
        if ranks is not None:
            ranks.check()
        if progress is not None:
            progress(done, total)

    seed = options.seed or 0
    loaded = load_weights(assembly, dtype, device, progress=report, seed=seed, mmap=options.mmap)
    return RankModel(assembly, loaded, backend, device, dtype)


def serve_rank(
    ranks: Ranks, model: str | Path | None, options: LLMOptions, local_rank: int
) -> Report | None:
    """In a rank that is not 0: load, then run what rank 0 sends until it sends no more.

    Returns:
        None when all went well, or another rank failed first; else this rank's error, which the
        other ranks have been told.
    """
    try:
        loaded = load_rank(model, options, ranks, local_rank=local_rank)
        runner = build_runner(
            loaded.model,
            loaded.backend,
            options.engine_options(),
            model_length=loaded.assembly.spec.max_length,
            device=loaded.device,
            dtype=loaded.dtype,
            peers=ranks,
        )
        runner.serve()
    except Exception as error:
        cause = ranks.fail(error)
        return Report.of(error, ranks.tp.rank) if cause is error else Report.lost(ranks.tp.rank)
    ranks.close()
    return None


def rank_device(options: LLMOptions, local_rank: int) -> torch.device:
    """The device of a rank; with several ranks on GPUs each takes the one of its number.

    Raises:
        OptionError: the device cannot be used, or is one GPU for several ranks.
    """
    name = options.device
    if name == "auto":
        # cuda (ROCm's devices too), xpu, mps, ...: whatever this torch was built for and finds.
        found = torch.accelerator.current_accelerator(check_available=True)
        name = "cpu" if found is None else found.type
    try:
        device = torch.device(name)
        if device.type == "cuda" and options.tensor_parallel_size > 1:
            if device.index is not None:
                raise OptionError(
                    f"device={name} is one GPU, but each of {options.tensor_parallel_size} ranks "
                    "takes one of its own: pass device=cuda (and choose with CUDA_VISIBLE_DEVICES)"
                )
            device = torch.device("cuda", local_rank)
        torch.empty(0, device=device)
    except OptionError:
        raise
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).splitlines()[0]
        raise OptionError(f"device={name} cannot be used here: {reason}") from None
    return device


def _serve_launch(
    ranks: Ranks, model: str | Path | None, options: LLMOptions, launch: Launch
) -> None:
    """Serve rank 0 of a launch; leaves the process with status 1 if that fails."""
    report = serve_rank(ranks, model, options, launch.local_rank)
    if report is not None:
        if not report.lost_peer:
            print(f"error: {report}", file=sys.stderr, flush=True)
        raise SystemExit(1)


def _refuse_early(model: str | Path | None, options: LLMOptions) -> None:
    """Find out what a rank would refuse, before any is started."""
    plan = _assemble(model, options, TensorParallel(0, options.tensor_parallel_size)).plan
    if plan is not None:
        plan.raise_for_findings()


def _assemble(model: str | Path | None, options: LLMOptions, tp: TensorParallel | None) -> Assembly:
    """The model without its weights; raises OptionError for options that contradict it."""
    assembly = assemble(
        model,
        options.conf,
        options.overrides,
        search_path=options.search_path,
        tp=tp,
        weights=options.load != "dummy",
        rewrites=options.rewrites,
        fp8_cache=options.kv_cache_dtype == "fp8",
    )
    check_lengths(options, assembly.spec.max_length)
    return assembly


def _dtype(name: str, device: torch.device, config: Mapping[str, Any]) -> torch.dtype:
    """The dtype to run in; "auto" is float32 on a CPU, elsewhere what the weights came in."""
    if name == "auto" and device.type == "cpu":
        return torch.float32
    if name == "auto":
        published = config.get("dtype") or config.get("torch_dtype") or "bfloat16"
        name = published if published in ("float16", "bfloat16") else "bfloat16"
    return getattr(torch, name)
