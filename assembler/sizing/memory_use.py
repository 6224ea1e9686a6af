"""What each tensor-parallel rank of a model needs, and what fits a device, without weights."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import nn

from assembler.blocks.parallel import TensorParallel
from assembler.engine.kv_cache import bytes_per_page, cache_specs
from assembler.engine.lengths import DEFAULT_MAX_MODEL_LEN
from assembler.engine.scheduled_batch import most_logit_rows
from assembler.engine.step_memory import step_memory
from assembler.errors import SpecError, WiringError
from assembler.loading import Assembly
from assembler.model.build import build_model
from assembler.model.dry_run import blaming_equations
from assembler.weights.execute import materialize


@dataclass(frozen=True)
class Device:
    """What a rank runs on, and how it is used."""

    nbytes: int  # of memory
    utilization: float = 0.9  # share of it that weights, steps and KV cache may take
    page_size: int = 16  # tokens of a page
    max_num_seqs: int = 256
    max_num_batched_tokens: int = 2048

    @property
    def share(self) -> int:
        """Bytes that may be used."""
        return int(self.nbytes * self.utilization)


@dataclass(frozen=True)
class SizeUse:
    """The needs of the fullest rank of one tensor-parallel size."""

    tp_size: int
    refused: str = ""  # why the model cannot be split so; everything below is 0 then
    weights: int = 0  # bytes
    lightest: int = 0  # bytes of weights of the rank that holds the fewest
    kv_per_token: int = 0  # bytes, over all layers
    step: int = 0  # bytes of activations and logits, at the fullest moment of the largest step
    kv_tokens: int = 0  # that fit into whole pages of what is left
    longest_context: int = 0  # tokens of one sequence
    max_batch: int = 0  # sequences of `context` tokens, no more than `max_num_seqs`

    @property
    def fits(self) -> bool:
        """Whether any token can be generated."""
        return self.kv_tokens > 0


@dataclass(frozen=True)
class MemoryUse:
    """The needs of a model over several tensor-parallel sizes."""

    title: str
    parameters: int
    dtype: str
    device: Device
    context: int  # tokens of each sequence of the batch
    sizes: tuple[SizeUse, ...]

    @property
    def fits(self) -> bool:
        """Whether the model runs with every size."""
        return all(size.fits for size in self.sizes)

    def to_json(self) -> dict[str, Any]:
        """JSON-ready data; sizes in bytes."""
        rows = [{**asdict(size), "fits": size.fits} for size in self.sizes]
        return {**asdict(self), "sizes": rows, "fits": self.fits}


def measure_memory(
    assembly: Assembly,
    tp_sizes: Sequence[int],
    device: Device,
    *,
    dtype: torch.dtype = torch.bfloat16,
    context: int | None = None,
) -> MemoryUse:
    """Work out the needs of an assembled model, whose weights are not looked at.

    Args:
        dtype: of weights, activations and KV cache.
        context: tokens of each sequence of the largest batch; None: as many as the model allows.
    """
    spec = assembly.spec
    context = context or spec.max_length or DEFAULT_MAX_MODEL_LEN
    sizes = []
    for size in dict.fromkeys(tp_sizes):
        try:
            sizes.append(_size_use(assembly, size, device, dtype, context))
        except WiringError:  # whatever the size
            raise
        except SpecError as error:
            sizes.append(SizeUse(size, refused=str(error)))
    return MemoryUse(
        title=f"{spec.name}, {spec.num_layers} layers",
        parameters=sum(p.numel() for p in assembly.model.parameters()),
        dtype=str(dtype).removeprefix("torch."),
        device=device,
        context=context,
        sizes=tuple(sizes),
    )


def _size_use(
    assembly: Assembly, tp_size: int, device: Device, dtype: torch.dtype, context: int
) -> SizeUse:
    """Raises SpecError where the model cannot be split so."""
    ranks = [_rank(assembly, TensorParallel(rank, tp_size), dtype) for rank in range(tp_size)]
    held = [sum(p.nbytes for p in rank.parameters()) for rank in ranks]
    fullest = ranks[held.index(max(held))]
    page = max(bytes_per_page(cache_specs(rank), device.page_size, dtype) for rank in ranks)
    with blaming_equations(assembly.spec):
        rows = most_logit_rows(device.max_num_seqs, device.max_num_batched_tokens, may_cut=True)
        step = step_memory(fullest, device.max_num_batched_tokens, rows)
    pages = max(device.share - max(held) - step, 0) // page
    tokens = pages * device.page_size
    batch = pages // -(-context // device.page_size)
    longest = min(tokens, assembly.spec.max_length or tokens)
    return SizeUse(
        tp_size=tp_size,
        weights=max(held),
        lightest=min(held),
        kv_per_token=page // device.page_size,
        step=step,
        kv_tokens=tokens,
        longest_context=longest,
        max_batch=min(batch, device.max_num_seqs),
    )


def _rank(assembly: Assembly, tp: TensorParallel, dtype: torch.dtype) -> nn.Module:
    """The rank's model as it would be loaded, on the meta device."""
    model = build_model(assembly.spec, tp)
    own_dtypes = None if assembly.plan is None else assembly.plan.dtypes
    materialize(model, "meta", dtype, own_dtypes)
    return model
