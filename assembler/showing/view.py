"""A model as what is shown of it: plain data that every format draws from."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any

from assembler.showing.diagram import Diagram
from assembler.showing.links import Link

PARTS = ("embedding", "attention", "mlp", "experts", "router", "norm", "position", "head", "other")


@dataclass(frozen=True)
class WeightView:
    """One parameter; of a block in a kind of layer, the one of each of these layers."""

    name: str  # within its block: qkv.weight
    parameter: str  # layers.{i}.attn.qkv.weight
    shape: tuple[int, ...]  # over all ranks
    fused: tuple[tuple[str, int], ...]  # (part, its rows) of a fused dimension
    split: str  # over ranks: "column", "row", "vocab", or "" for whole
    share: str  # one of PARTS: what its memory counts as
    rank_shapes: tuple[tuple[int, ...], ...]  # of each rank
    tied_to: str | None  # the parameter whose memory it shares
    rule: str  # of the weight map; "" if it has none for it
    rule_at: str  # file:line of the rule
    links: tuple[Link, ...]
    notes: tuple[str, ...]  # constants, and types that it keeps

    @property
    def numel(self) -> int:
        """Values of its own; none if it is tied."""
        return 0 if self.tied_to else math.prod(self.shape)

    @property
    def dtype(self) -> str:
        """Its type on disk, or several."""
        return "/".join(sorted({link.dtype for link in self.links}))


@dataclass(frozen=True)
class BlockView:
    """A block that equations call."""

    name: str
    path: str  # layers.{i}.attn
    block: str  # class
    part: str  # one of PARTS
    summary: str
    facts: tuple[str, ...]
    fields: tuple[tuple[str, str], ...]
    where: str  # file:line
    weights: tuple[WeightView, ...]

    @property
    def numel(self) -> int:
        """Its parameters, in one layer."""
        return sum(weight.numel for weight in self.weights)


@dataclass(frozen=True)
class SectionView:
    """The blocks and equations of one kind of layer, or of the model around the layers."""

    kind: str | None  # None: of the model
    layers: tuple[int, ...]
    wiring: tuple[tuple[str, str], ...]  # (equation, file:line)
    blocks: tuple[BlockView, ...]  # in the order in which the equations call them
    diagram: Diagram

    @property
    def count(self) -> int:
        """How often it is there."""
        return 1 if self.kind is None else len(self.layers)

    @property
    def numel(self) -> int:
        """Its parameters, once."""
        return sum(block.numel for block in self.blocks)


@dataclass(frozen=True)
class Checkpoint:
    """What is known of the files."""

    nbytes: int  # of its tensors
    tensors: int
    covered: str  # how much of both sides the weight map covers, in words
    complete: bool  # nothing stands in the way of loading
    ignored: tuple[tuple[tuple[str, ...], str], ...]  # (tensors, folded; reason)
    findings: tuple[str, ...]
    weight_map: str


@dataclass(frozen=True)
class ModelView:
    """All that is shown of a model."""

    title: str
    conf: str
    hidden_size: int
    vocab_size: int
    max_length: int | None
    layer_kinds: tuple[str, ...]
    model: SectionView
    kinds: tuple[SectionView, ...]  # in the order of their first layers
    active: int  # parameters that one token uses; of a mixture of experts, less than all
    cache_values: int  # numbers that the KV cache keeps for a token, on one rank
    checkpoint: Checkpoint | None
    tp_size: int = 1
    refused: str = ""  # why the model cannot be split over so many ranks
    rank_numels: tuple[int, ...] = ()  # parameters of each rank

    @property
    def sections(self) -> tuple[SectionView, ...]:
        """The kinds of layers and the model around them."""
        return (*self.kinds, self.model)

    @cached_property
    def numel(self) -> int:
        """Parameters of the whole model."""
        return sum(section.numel * section.count for section in self.sections)

    @cached_property
    def by_part(self) -> dict[str, int]:
        """Parameters by what they are for, without those that are nowhere."""
        sizes = dict.fromkeys(PARTS, 0)
        for section, weight in self.weights():
            sizes[weight.share] += weight.numel * section.count
        return {part: size for part, size in sizes.items() if size}

    @cached_property
    def disk_by_part(self) -> dict[str, int]:
        """Bytes on disk by what they are for; {} without a checkpoint."""
        sizes: dict[str, int] = {}
        for _, weight in self.weights():
            nbytes = sum(link.nbytes * link.count for link in weight.links)
            if nbytes:
                sizes[weight.share] = sizes.get(weight.share, 0) + nbytes
        return sizes

    def weights(self) -> Iterator[tuple[SectionView, WeightView]]:
        """Every weight with the section it belongs to."""
        for section in self.sections:
            for block in section.blocks:
                yield from ((section, weight) for weight in block.weights)

    def to_json(self) -> dict[str, Any]:
        """The same as JSON-ready data."""
        data = asdict(self)
        totals = {"parameters": self.numel, "parameters_by_part": self.by_part}
        return {**totals, **data}
