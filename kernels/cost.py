"""What a kernel has to move and to compute at least, and how long a device takes for that.

A measurement has something to be compared with: no kernel is faster than its floor. Every number
counts once what has to be read or written at all; that caches are smaller than that, launches cost
time and tiles are padded is what separates a kernel from it.

Shapes: T tokens, S sequences, H query heads, K key/value heads, D and Dv their widths, E experts.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Cost:
    """Of one call of a kernel."""

    bytes: int  # moved between memory and the processors
    flops: int  # of the matrix units; a multiply-add is two

    def __add__(self, other: Cost) -> Cost:
        return Cost(self.bytes + other.bytes, self.flops + other.flops)

    def floor_seconds(self, device: Roof) -> float:
        """The time that memory or matrix units take at least, whichever takes longer."""
        return max(self.bytes / device.bytes_per_second, self.flops / device.flops_per_second)

    def bound(self, device: Roof) -> str:
        """What the floor is due to: "memory" or "compute"."""
        memory = self.bytes / device.bytes_per_second
        return "memory" if memory >= self.flops / device.flops_per_second else "compute"


@dataclass(frozen=True)
class Roof:
    """What a device does at best, by measurement or by its data sheet."""

    name: str
    bytes_per_second: float
    flops_per_second: float  # dense products of 16-bit numbers


H200 = Roof("H200", 4.8e12, 989e12)
H100 = Roof("H100 SXM", 3.35e12, 989e12)
A100 = Roof("A100 SXM 80 GB", 2.039e12, 312e12)
MI300X = Roof("MI300X", 5.3e12, 1307e12)
ROOFS = (H200, H100, A100, MI300X)
"""By data sheet; a harness puts a measured copy and a measured product in their place."""


@dataclass(frozen=True)
class AttentionShape:
    """The heads of an attention and how its numbers are kept."""

    heads: int
    kv_heads: int
    head_dim: int
    head_dim_v: int | None = None  # None: as the keys'
    latent: bool = False  # values are a part of the keys
    itemsize: int = 2
    cache_itemsize: int = 2

    @property
    def value_dim(self) -> int:
        """Dv."""
        return self.head_dim if self.head_dim_v is None else self.head_dim_v

    @property
    def bytes_per_key(self) -> int:
        """Of one token in the cache."""
        width = self.head_dim + (0 if self.latent else self.value_dim)
        return self.kv_heads * width * self.cache_itemsize


def paged_attention_cost(
    shape: AttentionShape,
    query_lens: Sequence[int],
    context_lens: Sequence[int],
    window: int | None = None,
) -> Cost:
    """Causal attention of the last `query_lens` tokens of each of S contexts.

    Keys and values that any query of a sequence sees are read once for all of its queries and
    heads; queries are read and outputs written.
    """
    tokens, keys_read, pairs = sum(query_lens), 0, 0
    for query_len, context_len in zip(query_lens, context_lens, strict=True):
        if query_len == 0:
            continue
        first = context_len - query_len
        keys_read += context_len - (0 if window is None else max(0, first - window + 1))
        pairs += _pairs(context_len, window) - _pairs(first, window)
    through = shape.head_dim + shape.value_dim
    moved = keys_read * shape.bytes_per_key + tokens * shape.heads * through * shape.itemsize
    return Cost(moved, 2 * pairs * shape.heads * through)


def _pairs(length: int, window: int | None) -> int:
    """Of queries 0..length - 1 and the keys that they see."""
    if window is None or window >= length:
        return length * (length + 1) // 2
    return window * (window + 1) // 2 + (length - window) * window


def store_kv_cost(shape: AttentionShape, tokens: int) -> Cost:
    """Keys and values read in the dtype of the model, written in that of the cache."""
    read = tokens * shape.bytes_per_key // shape.cache_itemsize * shape.itemsize
    return Cost(read + tokens * shape.bytes_per_key, 0)


def merge_splits_cost(shape: AttentionShape, tokens: int, splits: int) -> Cost:
    """What splitting contexts adds: partial outputs in float32, written and read again."""
    lines = tokens * shape.heads
    return Cost(2 * lines * splits * (shape.value_dim + 1) * 4, 0)


def rowwise_cost(tokens: int, width: int, itemsize: int, reads: int, writes: int) -> Cost:
    """A fused pass over rows: `reads` tensors [T, width] in, `writes` out.

    RMSNorm reads 1 and writes 1, behind a residual sum 2 and 2; a gated activation reads gate and
    up (2) and writes 1; RoPE with store_kv reads and writes the heads once (1 and 1).
    """
    return Cost((reads + writes) * tokens * width * itemsize, 0)


def grouped_mlp_cost(
    tokens: int, top_k: int, experts: int, hidden: int, inner: int, itemsize: int = 2
) -> Cost:
    """Gate, up and down of the `top_k` experts of each token, spread evenly over the experts.

    The weights of as many experts as tokens can reach are read once; each choice of a token reads
    its row, writes and reads the inner features, and writes a row that is summed with the others.
    """
    rows = tokens * top_k
    weights = min(experts, rows) * 3 * hidden * inner * itemsize
    activations = rows * (3 * hidden + 2 * inner) * itemsize + tokens * hidden * itemsize
    return Cost(weights + activations, 2 * 3 * rows * hidden * inner)


def routing_cost(tokens: int, top_k: int, experts: int, itemsize: int = 2) -> Cost:
    """Choosing the `top_k` experts of each token by its logits, and sorting the choices by expert.

    Logits are read, weights (4 bytes) and choices (8) written; choices are read again and their
    places (4) written.
    """
    return Cost(tokens * (experts * itemsize + top_k * (4 + 8 + 8 + 4)), 0)


def linear_cost(tokens: int, inputs: int, outputs: int, itemsize: int = 2) -> Cost:
    """A linear layer: weights once, activations in and out."""
    moved = (inputs * outputs + tokens * (inputs + outputs)) * itemsize
    return Cost(moved, 2 * tokens * inputs * outputs)
