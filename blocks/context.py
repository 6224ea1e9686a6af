"""What a block is given: a `BuildContext` when it is made, a `ForwardContext` when it runs.

Both are arguments. No block reads a global, so two models with different groups, caches or
backends live side by side in one process.

Shapes: a *dense* forward has tokens [B, L] and streams [B, L, hidden]; a *paged* one has all the
tokens of a step in a row, [T] and [T, hidden]. Blocks treat the leading dims alike.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, TypeVar

import torch

from assembler.blocks.parallel import Part, TensorParallel
from assembler.kernels.paged_batch import PagedBatch

if TYPE_CHECKING:
    from torch import nn

    from assembler.kernels.dispatch import AttentionBackend

R = TypeVar("R")


@dataclass(frozen=True)
class Routing:
    """The size of a mixture of experts, for the blocks inside it."""

    num_experts: int
    top_k: int  # experts a token uses


@dataclass(frozen=True)
class BuildContext:
    """Where a block stands in the model: all that its constructor does not take from the YAML.

    A block's first constructor argument is this object, named `ctx`; the keyword-only arguments
    after it are the block's YAML fields.
    """

    hidden_size: int  # width of the stream the block reads and writes
    vocab_size: int
    max_length: int | None  # longest sequence the model was made for, None if it says nothing
    tp: TensorParallel
    path: str = ""  # dotted module path, for error messages
    # Set when the ranks share the stream itself, e.g. the queries: which rows each of them holds.
    # `hidden_size` is the width over all ranks.
    part: Part | None = None
    # Set when the block serves the heads of an attention block one by one (a norm with a weight for
    # each, a gate): the rows of all heads, in units of head_dim.
    heads: Part | None = None
    routing: Routing | None = None  # set inside a mixture of experts
    # Builds a nested block from its validated spec; set by the assembler (blocks know no registry).
    make: Callable[[BuildContext, Any], nn.Module] = field(repr=False, default=None)  # type: ignore[assignment]

    def child(
        self,
        spec: Any,
        name: str,
        width: int | None = None,
        part: Part | None = None,
        heads: Part | None = None,
    ) -> nn.Module:
        """Build the nested block `spec` (a validated field) over `width`, default hidden_size.

        With `part` it works on this rank's rows of that part of a stream (and `width` is its size);
        with `heads` on each of them by itself.
        """
        path = f"{self.path}.{name}" if self.path else name
        width = part.size if part is not None else width or self.hidden_size
        place = replace(self, path=path, hidden_size=width, part=part, heads=heads)
        return self.make(place, spec)


@dataclass(frozen=True)
class ForwardContext:
    """What one forward pass knows besides the activations.

    `paged` is None in a dense forward (no cache: parity checks, training): attention is then causal
    over each row of the batch. In a paged forward attention stores its keys and values through
    `attention` into `kv_caches[cache_index]` and reads what is there.
    """

    positions: torch.Tensor  # dense [L] (every row alike) or paged [T]; int64
    # Length of the sequence each token belongs to, as far as it is known (the whole prompt during
    # prefill); broadcasts against `positions`. RoPE types that depend on the length read it.
    sequence_lengths: torch.Tensor
    paged: PagedBatch | None = None
    attention: AttentionBackend | None = None
    # A (keys, values) pair for each attention block, each [pages, page_size, kv_heads, head_dim]
    # (see `CacheSpec`).
    kv_caches: Sequence[tuple[torch.Tensor, torch.Tensor | None]] = ()
    logit_rows: torch.Tensor | None = None  # rows of [T] whose logits are wanted; None means all
    # Results that several blocks of one pass share (RoPE cos/sin), keyed by all they depend on
    # besides the pass. It lives as long as the pass.
    shared: dict[Any, Any] = field(default_factory=dict, compare=False, repr=False)

    @classmethod
    def dense(cls, length: int, device: torch.device | str = "cpu") -> ForwardContext:
        """The context of a dense forward over [B, length] tokens, positions 0..length-1."""
        return cls(
            positions=torch.arange(length, device=device),
            sequence_lengths=torch.tensor([length], device=device),
        )

    def once(self, key: Any, compute: Callable[[], R]) -> R:
        """`compute()` the first time this pass asks for `key`, the same result afterwards."""
        if key not in self.shared:
            self.shared[key] = compute()
        return self.shared[key]


@dataclass(frozen=True)
class CacheSpec:
    """The KV memory one attention block needs, per token and rank."""

    num_kv_heads: int
    head_dim: int  # of the keys
    window: int | None = None  # keys this far back or further are never read
    value_dim: int | None = None  # of the values; None: as of the keys
    # The values are a part of the keys and take no memory of their own (latent attention): the
    # block's pair in `ForwardContext.kv_caches` is (keys, None).
    latent: bool = False

    @property
    def stored_value_dim(self) -> int:
        """Numbers a token and head that the values take besides the keys."""
        if self.latent:
            return 0
        return self.head_dim if self.value_dim is None else self.value_dim
