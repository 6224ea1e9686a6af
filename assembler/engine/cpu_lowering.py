"""From a model's graphs to a program of the CPU kernels: an instruction for each thing done.

The lowering walks the graphs that the wiring equations became, whatever the architecture, and knows
the blocks by their class. A model with a block or an option that has no instruction is not lowered;
it runs as the torch module it is.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import fx, nn

from assembler.blocks.alibi import AlibiAttn
from assembler.blocks.attention import RopeAttn
from assembler.blocks.embedding import Embedding, LMHead
from assembler.blocks.functions import softcap
from assembler.blocks.linear import ColumnLinear, Linear, ReplicatedLinear, RowLinear
from assembler.blocks.mlp import MLP, GatedMLP
from assembler.blocks.norms import LayerNorm, RMSNorm
from assembler.blocks.rope import RotaryEmbedding
from assembler.engine.kv_cache import KVCache
from assembler.kernels.cpu_program import (
    ACTIVATIONS,
    LOGITS,
    NOTHING,
    AttentionFields,
    Instruction,
    Opcode,
)

_ALIGNMENT = 64  # numbers; more than a cache line
_MAX_HEAD_DIM = 1024
_NORM_OVER_ALL = 1  # kind of HEADS
_CONTEXT = object()  # what the graphs pass around as ctx
_TOKENS = object()


class NotLowered(Exception):
    """A part of the model has no instruction; the message says which."""


class Value:
    """Rows of numbers in the workspace; its place is free again once nobody holds it."""

    def __init__(self, place: int, width: int, free: list[int] | None = None) -> None:
        """`free`: the list that its place returns to."""
        self.place, self.width = place, width
        self._free = free

    def __del__(self) -> None:
        if self._free is not None:
            self._free.append(self.place)


@dataclass
class Program:
    """Instructions, and what they refer to: it must live as long as they do."""

    max_rows: int
    dtype: torch.dtype
    caches: Sequence[KVCache]
    instructions: list[Instruction] = field(default_factory=list)
    ropes: list[RotaryEmbedding] = field(default_factory=list)
    kept: list[torch.Tensor] = field(default_factory=list)
    size: int = 0  # of the workspace, in numbers
    vocab_size: int = 0
    _free: dict[int, list[int]] = field(default_factory=dict)  # places by width

    def value(self, width: int) -> Value:
        """Room for rows of `width` numbers."""
        free = self._free.setdefault(width, [])
        if free:
            return Value(free.pop(), width, free)
        place = self.size
        self.size += -(-self.max_rows * width // _ALIGNMENT) * _ALIGNMENT
        return Value(place, width, free)

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

    def add(self, opcode: Opcode, x: Value | None, out: Value, **fields: Any) -> Value:
        """Append an instruction that reads `x` and writes `out`."""
        defaults = {"input2": NOTHING, "out2": NOTHING, "table": -1, "k": out.width}
        if x is not None:
            defaults |= {"input": x.place, "k": x.width}
        sampled = int(out.place == LOGITS or (x is not None and x.place == LOGITS))
        common = {"opcode": opcode, "out": out.place, "n": out.width, "sampled": sampled}
        self.instructions.append(Instruction(**(defaults | common | fields)))
        return out


def lower(
    model: nn.Module, caches: Sequence[KVCache], max_rows: int, dtype: torch.dtype
) -> Program:
    """The program of a model over its caches.

    Raises:
        NotLowered: the model has a part without an instruction.
    """
    if not isinstance(model, fx.GraphModule) or getattr(model.tp, "size", 1) > 1:
        raise NotLowered("it is no graph of blocks on one rank")
    program = Program(max_rows, dtype, caches)
    result = _Walk(model, program).run(_TOKENS, _CONTEXT)
    if not (isinstance(result, Value) and result.place == LOGITS):
        raise NotLowered("it does not end in a head")
    return program


class _Walk(fx.Interpreter):
    """Runs a graph with places in the workspace in the role of tensors."""

    def __init__(self, module: fx.GraphModule, program: Program) -> None:
        super().__init__(module, garbage_collect_values=True)
        self.extra_traceback = False  # in errors that only say what has no instruction
        self.program = program

    def run_node(self, n: fx.Node) -> Any:
        result = super().run_node(n)
        if isinstance(result, Value) and result.place == LOGITS and len(n.users) > 1:
            raise NotLowered("logits are used twice, and there is one place for them")
        return result

    def call_module(self, target: Any, args: tuple, kwargs: dict) -> Any:
        block = self.fetch_attr(target)
        if target == "layers":
            return self._layers(block, args)
        return lower_block(self.program, block, *(a for a in args if a is not _CONTEXT))

    def _layers(self, layers: nn.Module, args: tuple) -> Any:
        state = args[:-1]
        for layer in layers:
            out = _Walk(layer, self.program).run(*state, _CONTEXT)
            state = out if isinstance(out, tuple) else (out,)
        return out

    def call_function(self, target: Any, args: tuple, kwargs: dict) -> Any:
        if target is operator.getitem:
            return args[0][args[1]]
        values = [a for a in args if isinstance(a, Value)]
        numbers = [a for a in args if isinstance(a, int | float)]
        add, x = self.program.add, values[0]
        out = x if x.place == LOGITS else self.program.value(x.width)
        if target is operator.add and len(values) == 2:
            return add(Opcode.ADD, x, out, input2=values[1].place)
        if target is operator.mul and numbers:
            return add(Opcode.SCALE, x, out, scalar=numbers[0])
        if target is operator.truediv and args[0] is x and numbers:
            return add(Opcode.SCALE, x, out, scalar=numbers[0], kind=1)
        if target is softcap and numbers:
            return add(Opcode.SOFTCAP, x, out, scalar=numbers[0])
        raise NotLowered(f"the function {getattr(target, '__name__', target)}")


def lower_block(program: Program, block: nn.Module, *args: Any) -> Any:
    """Append what a call of `block` does."""
    rule = _RULES.get(type(block))
    if rule is None or block._forward_hooks or block._forward_pre_hooks:
        raise NotLowered(f"the block {type(block).__name__}")
    return rule(program, block, *args)


def _refuse(block: nn.Module, **options: bool) -> None:
    """Raise `NotLowered` if one of the options is in use."""
    for name, used in options.items():
        if used:
            raise NotLowered(f"{name} of {type(block).__name__}")


def _embedding(program: Program, block: Embedding, tokens: Any) -> Value:
    _refuse(block, sharding=block.tp.size > 1)
    weight = program.address(block.weight)
    x = program.add(
        Opcode.EMBED, None, program.value(block.weight.shape[1]), input=NOTHING, weight=weight
    )
    if block.scale == 1.0:
        return x
    factor = torch.tensor(block.scale, dtype=block.weight.dtype).item()
    return program.add(Opcode.SCALE, x, program.value(x.width), scalar=factor)


def _linear(program: Program, block: nn.Linear, x: Value, out: Value | None = None) -> Value:
    weight, bias = program.address(block.weight), program.address(block.bias)
    out = out or program.value(block.out_features)
    return program.add(Opcode.LINEAR, x, out, weight=weight, bias=bias)


def _head(program: Program, block: LMHead, x: Value) -> Value:
    _refuse(block, sharding=block.tp.size > 1)
    rows = program.add(Opcode.ROWS, x, program.value(x.width))
    program.instructions[-1].sampled = 1
    program.vocab_size = block.weight.shape[0]
    weight, bias = program.address(block.weight), program.address(block.bias)
    logits = Value(LOGITS, program.vocab_size)
    return program.add(Opcode.LINEAR, rows, logits, weight=weight, bias=bias)


def _norm_fields(program: Program, block: RMSNorm | LayerNorm) -> dict[str, Any]:
    layer_norm = isinstance(block, LayerNorm)
    _refuse(block, heads=block.heads is not None, sharding=block.split)
    _refuse(block, offset=layer_norm and bool(block.offset))
    weight, bias = program.address(block.weight), program.address(block.bias)
    return {"weight": weight, "bias": bias, "eps": block.eps, "offset": block.offset}


def _norm(
    program: Program, block: RMSNorm | LayerNorm, x: Value, residual: Value | None = None
) -> Value | tuple[Value, Value]:
    opcode = Opcode.LAYER_NORM if isinstance(block, LayerNorm) else Opcode.RMS_NORM
    fields = _norm_fields(program, block)
    normed = program.value(x.width)
    if residual is None:
        return program.add(opcode, x, normed, **fields)
    total = program.value(x.width)
    places = {"input2": residual.place, "out2": total.place}
    return program.add(opcode, x, normed, **fields, **places), total


def _gated_mlp(program: Program, block: GatedMLP, x: Value) -> Value:
    used = {"limit": block.limit is not None, "up_offset": bool(block.up_offset)}
    _refuse(block, **used, inner_norm=block.inner_norm is not None)
    both = lower_block(program, block.gate_up, x)
    inner = program.add(
        Opcode.GATE, both, program.value(both.width // 2), kind=_activation(block.activation)
    )
    return lower_block(program, block.down, inner)


def _mlp(program: Program, block: MLP, x: Value) -> Value:
    up = lower_block(program, block.up, x)
    kind = _activation(block.activation)
    return lower_block(
        program, block.down, program.add(Opcode.ACTIVATE, up, program.value(up.width), kind=kind)
    )


def _activation(name: Any) -> int:
    if not isinstance(name, str) or name not in ACTIVATIONS:
        raise NotLowered(f"the activation {name}")
    return ACTIVATIONS[name]


def _rope_attention(program: Program, block: RopeAttn, x: Value) -> Value:
    _refuse(
        block,
        position_scale=block.position_scale is not None,
        out_norm=block.out_norm is not None,
        gate=block.gate is not None,
    )
    fields = _qk_norm_fields(program, block) | _rotary_fields(program, block)
    return _attention(program, block, x, fields)


def _alibi_attention(program: Program, block: AlibiAttn, x: Value) -> Value:
    _refuse(block, rounded=block.rounded)
    return _attention(program, block, x, {})


def _attention(
    program: Program, block: RopeAttn | AlibiAttn, x: Value, fields: dict[str, Any]
) -> Value:
    """`fields`: what is done to the queries and keys."""
    _refuse(block, clip_qkv=block.clip_qkv is not None, head_dim=block.head_dim > _MAX_HEAD_DIM)
    keys, values = program.caches[block.cache_index]
    options = block.options()
    attention = AttentionFields(
        heads=block.num_heads,
        kv_heads=block.num_kv_heads,
        head_dim=block.head_dim,
        page_size=keys.shape[1],
        page_shift=_shift(keys.shape[1]),
        window=options.window or 0,
        chunk=options.chunk or 0,
        scale=options.scale,
        softcap=options.softcap or 0.0,
        sinks=program.as_float(options.sinks),
        slopes=program.as_float(options.alibi_slopes),
    )
    caches = {"keys": program.address(keys), "values": program.address(values)}
    qkv = lower_block(program, block.qkv, x)
    program.add(Opcode.HEADS, qkv, qkv, attention=attention, **caches, **fields)
    out = program.value(block.num_heads * block.head_dim)
    program.add(Opcode.ATTEND, qkv, out, attention=attention, **caches)
    return lower_block(program, block.o, out)


def _shift(size: int) -> int:
    """n where size is 2 ** n, else -1."""
    return size.bit_length() - 1 if size & (size - 1) == 0 else -1


def _qk_norm_fields(program: Program, block: RopeAttn) -> dict[str, Any]:
    q_norm, k_norm = block.q_norm, block.k_norm
    if block.qk_norm is None:
        return {}
    known = type(q_norm) is RMSNorm and q_norm.weight is not None
    _refuse(block, qk_norm=not known or block.qk_norm.over == "each_head")
    _refuse(block.qk_norm, position=block.qk_norm.after_rope)
    fields = _norm_fields(program, q_norm)
    kind = _NORM_OVER_ALL if block.qk_norm.over == "full" else 0
    return fields | {"weight2": _norm_fields(program, k_norm)["weight"], "kind": kind}


def _rotary_fields(program: Program, block: RopeAttn) -> dict[str, Any]:
    rope = block.rope
    if rope is None:
        return {}
    known = [other._key for other in program.ropes]
    if rope._key not in known:
        program.ropes.append(rope)
        known.append(rope._key)
    interleaved = int(rope.style == "interleaved")
    table = known.index(rope._key)
    return {"table": table, "rotary_dim": rope.dim, "interleaved": interleaved}


_RULES: dict[type[nn.Module], Callable[..., Any]] = {
    Embedding: _embedding,
    LMHead: _head,
    Linear: _linear,
    ReplicatedLinear: _linear,
    ColumnLinear: _linear,
    RowLinear: _linear,
    RMSNorm: _norm,
    LayerNorm: _norm,
    GatedMLP: _gated_mlp,
    MLP: _mlp,
    RopeAttn: _rope_attention,
    AlibiAttn: _alibi_attention,
}
