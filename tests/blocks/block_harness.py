"""What the tests of blocks share: building one block, filling it, and ranks run as threads."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import torch
from torch import nn

from assembler.blocks.context import BuildContext
from assembler.blocks.parallel import Part, ShardDim, TensorParallel


def build_context(
    hidden_size: int = 48,
    vocab_size: int = 60,
    tp: TensorParallel | None = None,
    path: str = "layers.0.block",
) -> BuildContext:
    """A context whose nested specs are callables that take the child's context."""
    return BuildContext(
        hidden_size=hidden_size,
        vocab_size=vocab_size,
        max_length=None,
        tp=tp or TensorParallel(),
        path=path,
        make=lambda ctx, spec: spec(ctx),
    )


def fill(module: nn.Module, seed: int = 0) -> nn.Module:
    """Give every parameter random values large enough that each of them matters."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.3 + 0.05)
    return module


def randn(*shape: int, seed: int = 1, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def local_slice(whole: torch.Tensor, layout: ShardDim, rank: int, size: int) -> torch.Tensor:
    """The share of a whole parameter that `layout` gives to a rank."""
    assert tuple(whole.shape) == layout.shape
    if layout.dim is None:
        return whole
    pieces = whole.split([part.size for part in layout.parts], dim=layout.dim)
    shares = []
    for part, piece in zip(layout.parts, pieces, strict=True):
        rows = part.rank_rows(rank, size)
        shares.append(piece.narrow(layout.dim, rows.start, len(rows)))
    return torch.cat(shares, dim=layout.dim)


def load_share(local: nn.Module, whole: nn.Module, rank: int, size: int) -> None:
    """Fill a rank's module with its share of the whole module's parameters."""
    sources = dict(whole.named_parameters())
    for name, module in local.named_modules():
        for leaf, layout in getattr(module, "shard_dims", dict)().items():
            path = f"{name}.{leaf}" if name else leaf
            target = module.get_parameter(leaf)
            target.data.copy_(local_slice(sources.pop(path), layout, rank, size))
    assert not sources, f"no layout declared for {sorted(sources)}"


class ThreadGroup:
    """Stands for a process group: every rank is a thread of this process."""

    def __init__(self, size: int) -> None:
        self.barrier = threading.Barrier(size, timeout=20)
        self.slots: list[torch.Tensor] = [torch.empty(0)] * size

    def exchange(self, rank: int, x: torch.Tensor) -> Sequence[torch.Tensor]:
        """Everybody's `x`, in the order of ranks."""
        self.slots[rank] = x
        self.barrier.wait()
        pieces = list(self.slots)
        self.barrier.wait()
        return pieces


@dataclass(frozen=True)
class ThreadRank(TensorParallel):
    """A rank of a `ThreadGroup`."""

    group: ThreadGroup = field(kw_only=True)

    def all_reduce(self, x: torch.Tensor) -> torch.Tensor:
        return sum(self.group.exchange(self.rank, x))

    def all_gather(self, x: torch.Tensor, part: Part) -> torch.Tensor:
        return torch.cat(list(self.group.exchange(self.rank, x)), dim=-1)


def run_ranks(
    size: int,
    whole: nn.Module,
    build: Callable[[TensorParallel], nn.Module],
    call: Callable[[nn.Module], torch.Tensor],
) -> list[torch.Tensor]:
    """Build every rank's share of `whole`, call all of them at once and return their results."""
    group = ThreadGroup(size)
    ranks = [build(ThreadRank(rank=rank, size=size, group=group)) for rank in range(size)]
    for rank, module in enumerate(ranks):
        load_share(module, whole, rank, size)
    with ThreadPoolExecutor(size) as pool, torch.no_grad():
        return list(pool.map(call, ranks))
