"""What a comparison found, as data."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal


@dataclass(frozen=True)
class Compared:
    """Logits beside those of the reference."""

    error: float  # max |difference|; infinite where one side is not finite
    std: float  # of the reference's logits
    bound: float  # the largest error that passes: tolerance * max(1, std)

    @property
    def passed(self) -> bool:
        return self.error <= self.bound


@dataclass(frozen=True)
class Cause:
    """A change with which a block computes what the reference does."""

    change: str  # rope.style: interleaved
    instead_of: str  # half
    kind: Literal["field", "weights"]
    where: str  # file:line of the block in the YAML, or of the rule of the weight map
    error: float  # of the block with the change, on the reference's input


@dataclass(frozen=True)
class Inside:
    """A module within a block (or a part of a fused one) beside the reference's."""

    name: str  # layers.0.attn.qkv.q
    module: str  # model.layers.0.self_attn.q_proj
    error: float


@dataclass(frozen=True)
class Difference:
    """The first place at which the model departs from the reference.

    Errors are relative: max |difference| / (std + |value| / 100) of the reference's tensor.
    """

    kind: Literal["block", "wiring"]
    place: str  # layers.0.attn; of wiring the block that is given something else, or the layer
    where: str  # file:line of the block
    block: str  # its class in the YAML; "" of a layer's or the model's own result
    error: float  # of its output
    equation: str
    equation_where: str
    # Of what it is given, and of its output when it is given what the reference gives; None where
    # the reference shows nothing alike.
    input_error: float | None = None
    alone_error: float | None = None
    module: str = ""  # the reference's module, if it has one for this
    module_class: str = ""
    causes: tuple[Cause, ...] = ()
    tried: int = 0  # changes that were tried
    inside: tuple[Inside, ...] = ()
    reference_wiring: str = ""  # what the reference computes there, in the model's own names
    uncompared: tuple[str, ...] = ()  # blocks before it of which the reference shows nothing alike


@dataclass(frozen=True)
class VerifyReport:
    """The outcome of `verify_model`."""

    conf: str
    checkpoint: str
    against: str
    dense: Compared
    paged: Compared | None = None  # None where it was not asked for
    difference: Difference | None = None  # None where all agrees, or nothing could be located
    notes: tuple[str, ...] = ()

    @property
    def passed(self) -> bool:
        return self.dense.passed and (self.paged is None or self.paged.passed)

    def to_json(self) -> dict[str, Any]:
        """Plain data, for `format=json`."""
        return {"passed": self.passed, **asdict(self)}
