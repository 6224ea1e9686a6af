"""The shape of one step over paged KV memory, as every attention kernel reads it.

Legend used in shapes: T tokens of the step (all sequences, one after the other), S sequences,
H query heads, K key/value heads, D head dim, P pages of the cache, B tokens a page (page size).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, TypeVar

import torch

R = TypeVar("R")


@dataclass(frozen=True)
class PagedBatch:
    """Where each token of a step goes in the cache and which pages each sequence reads.

    A step mixes sequences freely: one that decodes has one query token, one that prefills (a whole
    prompt or a chunk of it) has several. Sequence s owns the query tokens
    `cu_seqlens_q[s]:cu_seqlens_q[s + 1]`; they are the *last* tokens of its `context_lens[s]`.
    The others may stand in pages that another sequence of the same step fills (prefix caching), so
    each layer stores the keys and values of all tokens before it attends with any.
    """

    slot_mapping: torch.Tensor  # [T] int64; page * page_size + offset where token t is stored
    page_table: torch.Tensor  # [S, max_pages] int32; row s: pages of s in order, padded with 0
    cu_seqlens_q: torch.Tensor  # [S + 1] int32; prefix sums of the query lengths
    context_lens: torch.Tensor  # [S] int32; tokens of s in the cache once this step is stored
    max_seqlen_q: int  # longest query of the step; 1 means every sequence decodes
    max_context_len: int  # largest context length of the step
    # What a backend derives from the fields above once for all layers of the step (index tables,
    # masks), by a key of its own. The tensors must not change after an attention has read them.
    derived: dict[Any, Any] = field(default_factory=dict, compare=False, repr=False)

    @property
    def is_decode(self) -> bool:
        """True when every sequence of the step has exactly one query token."""
        return self.max_seqlen_q == 1

    def once(self, key: Any, derive: Callable[[], R]) -> R:
        """`derive()` the first time this batch is asked for `key`, the same result afterwards."""
        if key not in self.derived:
            self.derived[key] = derive()
        return self.derived[key]
