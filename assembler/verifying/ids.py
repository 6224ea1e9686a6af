"""The texts that are compared: random tokens, the same every time."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch


def random_ids(
    vocab_size: int, batch: int, length: int, config: Mapping[str, Any], seed: int = 0
) -> torch.Tensor:
    """[batch, length] tokens without those that a config gives a meaning (padding, images)."""
    special = set(_special_tokens(config))
    ordinary = torch.tensor([n for n in range(vocab_size) if n not in special] or [0])
    generator = torch.Generator().manual_seed(seed)
    return ordinary[torch.randint(len(ordinary), (batch, length), generator=generator)]


def _special_tokens(config: Mapping[str, Any]) -> Iterator[int]:
    for key, value in config.items():
        if isinstance(value, Mapping):
            yield from _special_tokens(value)
        elif str(key).endswith(("_token_id", "_token_index")):
            values = value if isinstance(value, list) else [value]
            yield from (v for v in values if isinstance(v, int))
