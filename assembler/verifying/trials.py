"""One block alone: rebuilt with other settings or weights, run on what the reference gave it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import nn

from assembler.blocks.context import BuildContext, ForwardContext
from assembler.blocks.parallel import TensorParallel
from assembler.errors import AssemblerError
from assembler.model.graphs import num_streams, takes_context
from assembler.model.registry import BlockRegistry, BlockSpec
from assembler.model.spec import ModelSpec
from assembler.verifying.compare import relative_error
from assembler.weights.execute import reset_buffers

Weights = Mapping[str, torch.Tensor]


@dataclass(frozen=True)
class Bench:
    """A block with what it is to compute, in the reference's tensors."""

    spec: ModelSpec
    registry: BlockRegistry
    path: str  # layers.0.attn
    entry: BlockSpec
    block: nn.Module  # as loaded
    given: torch.Tensor  # token ids [B, L] or a stream [B, L, width]
    wanted: tuple[torch.Tensor, ...]  # any of these

    @property
    def weights(self) -> Weights:
        return self.block.state_dict()

    def error(self, entry: BlockSpec | None = None, weights: Weights | None = None) -> float | None:
        """How far the block is off with this entry and these weights; None if they do not fit."""
        block = self.block
        if entry is not None or weights is not None:
            made = self._make(entry or self.entry, weights or self.weights)
            if made is None:
                return None
            block = made
        out = self.run(block)
        if out is None:
            return None
        errors = [e for wanted in self.wanted if (e := relative_error(out, wanted)) is not None]
        return min(errors, default=None)

    @torch.no_grad()
    def run(self, block: nn.Module) -> torch.Tensor | None:
        """The block's output; None where it cannot be run alone."""
        if num_streams(type(block)) != 1:
            return None
        context = (ForwardContext.dense(self.given.shape[1]),)
        try:
            out = block(self.given, *(context if takes_context(type(block)) else ()))
        except (RuntimeError, ValueError):  # sizes that do not fit
            return None
        return out if isinstance(out, torch.Tensor) else None

    def _make(self, entry: BlockSpec, weights: Weights) -> nn.Module | None:
        context = BuildContext(
            hidden_size=self.spec.hidden_size,
            vocab_size=self.spec.vocab_size,
            max_length=self.spec.max_length,
            tp=TensorParallel(),
            make=self.registry.make,
        )
        try:
            block = context.child(entry, self.path)
            if getattr(block, "tied", False):
                return None
            block.load_state_dict(weights)
        except (AssemblerError, RuntimeError):  # other parameters than those there are
            return None
        reset_buffers(block, "cpu")
        return block.eval()
