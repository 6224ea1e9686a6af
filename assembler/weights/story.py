"""One tensor's whole story as data: where it lies, what a rule does to it, which parameter it
fills, what each rank takes. `storyteller` makes it and `story_text` puts it into words.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from assembler.weights.finding import Finding
from assembler.weights.ops import Shape


@dataclass(frozen=True)
class OnDisk:
    """A tensor of the checkpoint; its bytes are `start` to `stop` (exclusive) of `file`."""

    name: str
    file: str
    start: int
    stop: int
    dtype: str
    shape: Shape


@dataclass(frozen=True)
class Applied:
    """A rule of the weight map."""

    text: str  # layers.{i}.attn.qkv ← model.layers.{i}.self_attn.q_proj, ...
    where: str  # file:line
    through: tuple[str, ...]  # the maps that extend that file, the one in use first
    way: str = ""  # which of several ways, e.g. "2 of 3"


@dataclass(frozen=True)
class Step:
    """One op and the shape after it."""

    op: str
    shape: Shape


@dataclass(frozen=True)
class Into:
    """The parameter, or the rows `start:stop` of its dimension `dim`, that is filled."""

    parameter: str
    shape: Shape  # of the whole parameter
    part: str  # of a fused parameter, else ""
    rows: tuple[tuple[int, int, int], ...]  # (dim, start, stop); () is the whole parameter
    split: str  # "column", "row", "vocab" or "" where every rank holds all of it
    dtype: str | None  # kept whatever type the model is loaded in; None: that type


@dataclass(frozen=True)
class RankShare:
    """What one tensor-parallel rank takes."""

    rank: int
    taken: tuple[int, int, int] | None  # (dim, start, stop) of the part; None: all of the tensor
    rows: tuple[tuple[int, int, int], ...]  # where it goes in the rank's own parameter
    shape: Shape  # of what is copied; () with nbytes 0 where the rank takes nothing
    nbytes: int  # its share of the bytes on disk


@dataclass(frozen=True)
class Flow:
    """One copy: (part of) a tensor on disk, through its ops, into (part of) a parameter."""

    source: OnDisk
    scales: OnDisk | None  # of a quantised tensor whose scales are a tensor of their own
    rule: Applied | None
    steps: tuple[Step, ...]
    into: Into
    loss: str | None  # what writing it back cannot restore
    ranks: tuple[RankShare, ...] = ()  # where there are several


@dataclass(frozen=True)
class TensorStory:
    """All there is to say about one name."""

    name: str  # as it is called in full
    sides: tuple[str, ...]  # "checkpoint", "model", or both where both have the name
    checkpoint: str
    weight_map: str
    prefix: str  # that all names of the checkpoint have before those of the map
    tp_size: int
    flows: tuple[Flow, ...] = ()
    on_disk: OnDisk | None = None  # of the tensor, where a tensor was asked for
    rule: Applied | None = None  # of the parameter, where nothing flows
    constants: tuple[str, ...] = ()  # "layers.0.bias = 0"
    ties: tuple[str, ...] = ()  # "lm_head.weight shares the memory of embed.weight"
    ignored: str = ""  # why no parameter wants it
    ignored_at: str | None = None  # file:line of that reason
    findings: tuple[Finding, ...] = ()  # those that speak of it
    refused: str = ""  # why the model cannot be split over `tp_size` ranks

    @property
    def complete(self) -> bool:
        """Whether nothing is wrong with it."""
        return not self.refused and not any(f.severity == "error" for f in self.findings)

    def to_json(self) -> dict[str, Any]:
        """The story as JSON-ready data."""
        return {**asdict(self), "complete": self.complete}
