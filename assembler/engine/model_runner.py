"""From a scheduled batch to sampled tokens: inputs, forward pass, sampling; owner of the KV memory.

Shapes: T tokens of the step, S sequences, R rows that sample, V vocabulary, P pages.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn

from assembler.blocks.context import ForwardContext
from assembler.engine.cpu_step import CPUStep, cpu_step
from assembler.engine.cuda_graphs import DecodeGraphs, GraphSettings, record_decodes
from assembler.engine.host_copies import to_device
from assembler.engine.kv_cache import KVCache, allocate_kv_caches, cache_specs
from assembler.engine.overlap import LateTokens, SampledTokens
from assembler.engine.page_table import PageTable
from assembler.engine.peers import Peers
from assembler.engine.sampler import Sampler
from assembler.engine.scheduled_batch import ScheduledBatch
from assembler.engine.step_inputs import StepInputs
from assembler.kernels.dispatch import ASKED_FOR
from assembler.kernels.paged_attention_warmup import warm_up_batches
from assembler.kernels.paged_batch import PagedBatch

if TYPE_CHECKING:
    from assembler.kernels.dispatch import AttentionBackend


class ModelRunner:
    """Runs steps of `model` over a paged KV cache of its own.

    The model is any module called as `model(input_ids [T], ctx) -> logits [R, V]` whose attention
    blocks have `cache_index` and `cache_spec()`; there is one cache for each of them.
    """

    def __init__(
        self,
        model: nn.Module,
        attention_backend: AttentionBackend,
        *,
        num_pages: int,
        page_size: int,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
        sampler: Sampler | None = None,
        peers: Peers | None = None,
        enforce_eager: bool = False,
        graphs: GraphSettings | None = None,
    ) -> None:
        """Allocate the cache of `num_pages` pages, and record the graphs there shall be.

        Args:
            dtype: of the cached keys and values.
            sampler: None: one without a seed.
            peers: the other ranks that run this model, if there are any.
            enforce_eager: run every step as the torch module it is.
            graphs: the CUDA graphs of decodes; None: there are none.
        """
        self.model = model
        self.attention_backend = attention_backend
        self.num_pages = num_pages
        self.page_size = page_size
        self.device = torch.device(device)
        self.sampler = sampler or Sampler()
        self.peers = peers
        self._page_table = PageTable()
        self.kv_caches: list[KVCache] = allocate_kv_caches(
            cache_specs(model), num_pages, page_size, self.device, dtype
        )
        # Compiled steps attend by themselves: whoever names a backend gets it.
        in_torch = enforce_eager or getattr(attention_backend, "reason", "") == ASKED_FOR
        self._small_step = None if in_torch else cpu_step(model, self.kv_caches, self.device, dtype)
        self.sampler.has_cpu_kernels = self._small_step is not None
        self.graphs: DecodeGraphs | None = None
        if graphs is not None and not enforce_eager:
            with current_device(self.device):
                self.graphs = record_decodes(
                    graphs, model, self._context, page_size=page_size, device=self.device
                )

    @property
    def compiled_step(self) -> CPUStep | None:
        """The compiled kernels, for the steps that fit them; None: every step runs in torch."""
        return self._small_step

    def execute(self, batch: ScheduledBatch, late: LateTokens | None = None) -> list[int | None]:
        """Run the step; a new token for each of `batch.sampling_sequences`.

        None stands for a sequence whose logits are no distribution (NaN).

        Args:
            late: input ids that only the device knows.
        """
        inputs = StepInputs.of(batch, self.page_size)
        with self.peers.step(inputs.pack()) if self.peers else nullcontext():
            logits = self._score_prompts(batch, self.run(inputs, late))
            return self.sampler.sample(logits, batch.sampling_sequences)

    def launch(self, batch: ScheduledBatch, late: LateTokens | None = None) -> SampledTokens:
        """The same, without waiting for the device; `Sampler.found` says what the tokens mean."""
        logits = self.run(StepInputs.of(batch, self.page_size), late)
        return SampledTokens(self.sampler.choose(logits, batch.sampling_sequences))

    @torch.inference_mode()
    def warm_up(self, max_context_len: int) -> None:
        """Run tiny steps that store nothing and launch what later ones will.

        Triton compiles a kernel when it first meets it, which takes seconds: not in the midst of
        serving. `max_context_len` is the longest context there will be.
        """
        with current_device(self.device):
            for paged in warm_up_batches(max_context_len, self.device):
                positions = torch.arange(len(paged.slot_mapping), device=self.device)
                ctx = self._context(
                    positions=positions,
                    sequence_lengths=torch.full_like(positions, len(positions)),
                    paged=paged,
                )
                self.model(torch.zeros_like(positions), ctx)

    def serve(self) -> None:
        """In a rank that does not schedule: run every step that comes, until none does."""
        while (packed := self.peers.receive()) is not None:
            self.run(StepInputs.unpack(packed))

    def run(self, inputs: StepInputs, late: LateTokens | None = None) -> torch.Tensor:
        """The logits [R, V] of a step, valid until the next one."""
        small = self._small_step
        if small is not None and late is None and small.takes_numbers(inputs):
            self._page_table.update(inputs.page_lists)
            return small.run(inputs, self._page_table)
        return self._run_tensors(inputs, late)

    @torch.inference_mode()
    def _run_tensors(self, inputs: StepInputs, late: LateTokens | None) -> torch.Tensor:
        if self.graphs is not None and self.graphs.takes(inputs):
            return self.graphs.run(inputs, late)
        input_ids, ctx = self.model_inputs(inputs)
        if late is not None:
            late.put_into(input_ids)
        small = self._small_step
        return (small if small and small.fits(len(input_ids)) else self.model)(input_ids, ctx)

    def model_inputs(self, inputs: StepInputs) -> tuple[torch.Tensor, ForwardContext]:
        """`inputs` as tensors on the device: the token ids [T] and what goes with them."""
        self._page_table.update(inputs.page_lists)
        paged = PagedBatch(
            slot_mapping=self._tensor(inputs.slot_mapping, torch.int64),
            page_table=self._tensor(self._page_table.rows(), torch.int32),
            cu_seqlens_q=self._tensor(inputs.cu_seqlens_q, torch.int32),
            context_lens=self._tensor(inputs.context_lens, torch.int32),
            max_seqlen_q=inputs.max_seqlen_q,
            max_context_len=max(inputs.context_lens),
        )
        rows = inputs.logit_rows
        ctx = self._context(
            positions=self._tensor(inputs.positions, torch.int64),
            sequence_lengths=self._tensor(inputs.sequence_lengths, torch.int64),
            paged=paged,
            logit_rows=None if rows is None else self._tensor(rows, torch.int64),
        )
        return self._tensor(inputs.input_ids, torch.int64), ctx

    def _context(self, **fields: Any) -> ForwardContext:
        """A pass over this runner's caches."""
        return ForwardContext(attention=self.attention_backend, kv_caches=self.kv_caches, **fields)

    def _score_prompts(self, batch: ScheduledBatch, logits: torch.Tensor) -> torch.Tensor:
        """Hand over the rows of prompts whose logits are wanted; the rows that are sampled from."""
        if not any(item.num_prompt_logits for item in batch.items):
            return logits
        sampled, row = [], 0
        for item in batch.items:
            end = row + item.num_prompt_logits
            if end > row:
                self.sampler.score_prompt(item.sequence, item.start, logits[row:end])
            if item.samples:
                sampled.append(end)
            row = end + item.samples
        return logits[sampled]

    def _tensor(self, values: list | np.ndarray, dtype: torch.dtype) -> torch.Tensor:
        return to_device(values, dtype, self.device)


def current_device(device: torch.device) -> AbstractContextManager[None]:
    """Make `device` the thread's current GPU, which is where Triton launches its kernels."""
    return torch.cuda.device(device) if device.type == "cuda" else nullcontext()
