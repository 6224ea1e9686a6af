"""A program while it is written: its instructions, its places in memory, what it refers to."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import torch
from torch import nn

from assembler.blocks.context import ForwardContext
from assembler.engine.kv_cache import KVCache
from assembler.kernels.cpu_program import (
    BEGINS_CHAIN,
    LOGITS,
    NOTHING,
    ROW_BY_ROW,
    Instruction,
    Opcode,
    SpanFields,
)

_ALIGNMENT = 64  # numbers; more than a cache line
_KEEPS_WIDTH = ("norm", "attention", "mlp", "activation")  # roles whose output is as their input

MakeTables: TypeAlias = "Callable[[ForwardContext, torch.dtype], Sequence[torch.Tensor]]"


class NotLowered(Exception):
    """A part of the model has no instruction; the message says which."""


def expect_width(x: Value, width: int) -> None:
    """What does not fit is left to torch, which refuses it: kernels read weights without asking."""
    if x.width != width:
        raise NotLowered(f"rows of {x.width} numbers where {width} are wanted")


class Tokens:
    """Stands for the token ids where a graph passes them on."""


class Value:
    """Rows of numbers in the workspace; its place is free again once nobody holds it."""

    def __init__(
        self, place: int, width: int, times: int = 1, free: list[int] | None = None
    ) -> None:
        """`times`: rows for each token; `free`: the list that its place returns to."""
        self.place, self.width, self.times = place, width, times
        self._free = free

    def __del__(self) -> None:
        if self._free is not None:
            self._free.append(self.place)


@dataclass(frozen=True)
class RowTables:
    """Tables that torch makes, with a row for each token of a pass."""

    make: MakeTables
    by_position: bool  # a token's row depends on its position alone


@dataclass(frozen=True)
class TorchCall:
    """What torch does between two parts of a program."""

    name: str
    before: int  # the instruction it precedes
    function: Callable[..., Any]
    args: tuple[Any, ...]  # `Value`s, `Tokens` and numbers
    takes_context: bool
    outs: tuple[Value, ...]


@dataclass
class Program:
    """Instructions, and what they refer to: it must live as long as they do."""

    max_rows: int
    dtype: torch.dtype
    caches: Sequence[KVCache]
    rules: Mapping[type[nn.Module], Callable[..., Any]]  # (program, block, *values) -> values
    instructions: list[Instruction] = field(default_factory=list)
    calls: list[TorchCall] = field(default_factory=list)
    tables: list[RowTables] = field(default_factory=list)
    kept: list[torch.Tensor] = field(default_factory=list)
    reasons: dict[str, str] = field(default_factory=dict)  # why torch is called, by what is called
    size: int = 0  # of the workspace, in numbers
    vocab_size: int = 0
    num_positions: int | None = None  # that learned positions have
    _free: dict[tuple[int, int], list[int]] = field(default_factory=dict)
    _table_numbers: dict[Any, int] = field(default_factory=dict)
    _num_tables: int = 0

    def value(self, width: int, times: int = 1) -> Value:
        """Room for `times` rows of `width` numbers a token.

        Places are used again for the same width and times only: instructions of a chain work on
        different rows at a time, and rows of different sizes would overlap.
        """
        free = self._free.setdefault((width, times), [])
        place = free.pop() if free else self.grow(self.max_rows * width * times)
        return Value(place, width, times, free)

    def floats(self, width: int) -> Value:
        """Room for rows of `width` numbers of float32, whatever the weights are."""
        return self.value(width * 4 // self.dtype.itemsize)

    def room(self, num_bytes: int) -> Value:
        """Room for something that is not in rows."""
        free = self._free.setdefault((num_bytes, 0), [])
        place = free.pop() if free else self.grow(-(-num_bytes // self.dtype.itemsize))
        return Value(place, 0, 0, free)

    def grow(self, numbers: int) -> int:
        """A place for so many numbers where nothing else ever is."""
        place = self.size
        self.size += -(-numbers // _ALIGNMENT) * _ALIGNMENT
        return place

    def address(self, tensor: torch.Tensor | None) -> int | None:
        """Where a weight is; raises `NotLowered` if the kernels cannot read it there."""
        if tensor is None:
            return None
        plain = type(tensor.data) is torch.Tensor and tensor.is_contiguous()
        if not plain or tensor.dtype != self.dtype or tensor.device.type != "cpu":
            raise NotLowered(f"a weight {list(tensor.shape)} of {tensor.dtype}")
        self.kept.append(tensor)
        return tensor.data_ptr()

    def as_float(self, tensor: torch.Tensor | None) -> int | None:
        """Where a float32 copy of a small tensor is."""
        if tensor is None:
            return None
        self.kept.append(tensor.detach().float().contiguous().clone())
        return self.kept[-1].data_ptr()

    def table(
        self, key: Any, count: int, make: MakeTables, *, by_position: bool = True
    ) -> dict[str, int]:
        """The fields of an instruction that reads from the first of `count` tables on.

        `by_position`: a token's row depends on its position alone, see `RowTables`.
        """
        if key not in self._table_numbers:
            self.tables.append(RowTables(make, by_position))
            self._table_numbers[key] = self._num_tables
            self._num_tables += count
        return {"table": self._table_numbers[key], "by_position": int(by_position)}

    def add(self, opcode: Opcode, x: Value | None, out: Value, **fields: Any) -> Value:
        """Append an instruction that reads `x` and writes `out`."""
        defaults = {"input": NOTHING, "input2": NOTHING, "out2": NOTHING, "k": out.width}
        if x is not None:
            defaults |= {"input": x.place, "k": x.width, "span": whole(x)}
        sampled = int(out.place == LOGITS or (x is not None and x.place == LOGITS))
        common = {"opcode": opcode, "out": out.place, "n": out.width, "sampled": sampled}
        shape = {"times": out.times, "chain": 1}
        self.instructions.append(Instruction(**(defaults | common | shape | fields)))
        return out

    def lower(self, block: nn.Module, *args: Any) -> Any:
        """Append what a call of `block` does, in instructions or in torch."""
        start, rule = len(self.instructions), self.rules.get(type(block))
        calls = len(self.calls)
        try:
            if rule is None or block._forward_hooks or block._forward_pre_hooks:
                raise NotLowered("no instruction" if rule is None else "hooks")
            return rule(self, block, *args)
        except NotLowered as reason:
            del self.instructions[start:], self.calls[calls:]
            return self._block_in_torch(block, args, str(reason))

    def _block_in_torch(self, block: nn.Module, args: tuple[Any, ...], reason: str) -> Any:
        name = type(block).__name__
        values = [arg for arg in args if isinstance(arg, Value)]
        if not isinstance(block, nn.Linear) and (
            not values or getattr(block, "role", None) not in _KEEPS_WIDTH
        ):
            raise NotLowered(f"{name}: {reason}")
        width = block.out_features if isinstance(block, nn.Linear) else values[0].width
        outs = tuple(self.value(width) for _ in values)  # a norm gives back the sum that it takes
        takes_context = "ctx" in inspect.signature(block.forward).parameters
        return self.call_torch(name, block, args, outs, reason, takes_context)

    def call_torch(
        self,
        name: str,
        function: Callable[..., Any],
        args: tuple[Any, ...],
        outs: tuple[Value, ...],
        reason: str,
        takes_context: bool = False,
    ) -> Any:
        """Leave a call to torch; `outs` is what it gives."""
        before = len(self.instructions)
        self.calls.append(TorchCall(name, before, function, args, takes_context, outs))
        self.reasons.setdefault(name, reason)
        return outs if len(outs) > 1 else outs[0]

    def join_chains(self) -> None:
        """Let instructions that work row by row follow each other without waiting."""
        borders = {call.before for call in self.calls}
        head: Instruction | None = None
        for number, instruction in enumerate(self.instructions):
            alike = head is not None and (head.sampled, head.times) == (
                instruction.sampled,
                instruction.times,
            )
            if alike and number not in borders and instruction.opcode in ROW_BY_ROW:
                head.chain += 1
            else:
                head = instruction if _begins_chain(instruction) else None


def _begins_chain(instruction: Instruction) -> bool:
    # COMBINE reads what experts made of other tokens. With one expert a token these are rows like
    # all others, and what comes next may write where they stood.
    of_others = instruction.opcode == Opcode.COMBINE and instruction.routing.top_k == 1
    return instruction.opcode in BEGINS_CHAIN and not of_others


def whole(x: Value) -> SpanFields:
    """All of a row as one unit."""
    return SpanFields(0, 1, x.width, x.width)
