"""Rules for the blocks around attention: embeddings, linear layers, norms, feed-forward, head."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from assembler.blocks.activations import XIELU
from assembler.blocks.embedding import Embedding, LMHead
from assembler.blocks.linear import ColumnLinear, Linear, ReplicatedLinear, RowLinear
from assembler.blocks.mlp import MLP, GatedMLP
from assembler.blocks.norms import LayerNorm, RMSNorm
from assembler.blocks.positions import LearnedPositions, SinusoidalPositions
from assembler.engine.lowering.program import (
    NotLowered,
    Program,
    Tokens,
    Value,
    expect_width,
)
from assembler.kernels.cpu_program import ACTIVATIONS, LOGITS, Epilogue, Opcode, SpanFields


def refuse(**options: bool) -> None:
    """Raise `NotLowered` if one of the options is in use."""
    for name, used in options.items():
        if used:
            raise NotLowered(name)


def _embedding(program: Program, block: Embedding, tokens: Tokens, factor: float = 1.0) -> Value:
    refuse(sharding=block.tp.size > 1)
    weight = program.address(block.weight)
    x = program.add(Opcode.EMBED, None, program.value(block.weight.shape[1]), weight=weight)
    scale = torch.tensor(block.scale, dtype=block.weight.dtype).item()
    for number in (scale, factor):
        if number != 1.0:
            x = program.add(Opcode.SCALE, x, program.value(x.width), scalar=number)
    return x


def _learned_positions(program: Program, block: LearnedPositions, tokens: Tokens) -> Value:
    rows, width = block.weight.shape
    known = rows - block.offset
    program.num_positions = min(known, program.num_positions or known)
    fields = {"weight": program.address(block.weight), "offset": block.offset}
    return program.add(Opcode.POSITIONS, None, program.value(width), **fields)


def _sinusoidal_positions(program: Program, block: SinusoidalPositions, x: Value) -> Value:
    key = ("sines", block.half, block.spacing, block.offset)
    table = program.table(key, 1, lambda ctx, dtype: [block(torch.empty(0, dtype=dtype), ctx)])
    return program.add(Opcode.TABLE, None, program.value(2 * block.half), **table)


def _linear(program: Program, block: nn.Linear, x: Value) -> Value:
    return _product(program, block, x, block.out_features)


def _product(
    program: Program,
    block: nn.Linear,
    x: Value,
    width: int,
    epilogue: Epilogue = Epilogue.PLAIN,
    activation: Any = "linear",
) -> Value:
    """Append a product with what comes after it, which gives rows of `width` numbers."""
    refuse(hooks=bool(block._forward_hooks or block._forward_pre_hooks))
    expect_width(x, block.in_features)
    fields = {"weight": program.address(block.weight), "bias": program.address(block.bias)}
    fields |= {"kind": epilogue, "offset": activation_kind(activation)}
    return program.add(Opcode.LINEAR, x, program.value(width), **fields)


def _head(program: Program, block: LMHead, x: Value) -> Value:
    refuse(sharding=block.tp.size > 1)
    expect_width(x, block.weight.shape[1])
    weight, bias = program.address(block.weight), program.address(block.bias)
    rows = program.add(Opcode.ROWS, x, program.value(x.width))
    program.instructions[-1].sampled = 1
    program.vocab_size = block.weight.shape[0]
    logits = Value(LOGITS, program.vocab_size)
    return program.add(Opcode.LINEAR, rows, logits, weight=weight, bias=bias)


def _norm(
    program: Program, block: RMSNorm | LayerNorm, x: Value, residual: Value | None = None
) -> Value | tuple[Value, Value]:
    normed = program.value(x.width)
    if residual is None:
        return norm_span(program, block, x, SpanFields(0, 1, x.width, x.width), normed)
    expect_width(residual, x.width)
    total = program.value(x.width)
    places = {"input2": residual.place, "out2": total.place}
    norm_span(program, block, x, SpanFields(0, 1, x.width, x.width), normed, **places)
    return normed, total


def norm_span(
    program: Program, block: nn.Module, x: Value, span: SpanFields, out: Value, **places: int
) -> Value:
    """Append a norm of each unit of `span`, whose weight is common to all or has a row for each."""
    known = type(block) in (RMSNorm, LayerNorm)
    refuse(**{type(block).__name__: not known or block.split})
    if block.weight is not None and block.weight.shape[-1] != span.width:
        raise NotLowered(f"a norm of {block.weight.shape[-1]} over {span.width} numbers")
    fields = {
        "weight": program.address(block.weight),
        "bias": program.address(block.bias),
        "eps": block.eps,
        "offset": block.offset,
        "weight_step": 0 if block.heads is None else span.width,
    }
    opcode = Opcode.RMS_NORM if type(block) is RMSNorm else Opcode.LAYER_NORM
    return program.add(opcode, x, out, span=span, **fields, **places)


def _gated_mlp(program: Program, block: GatedMLP, x: Value) -> Value:
    if block.limit is None and not block.up_offset:
        width = block.gate_up.out_features // 2
        inner = _product(program, block.gate_up, x, width, Epilogue.GATED, block.activation)
    else:
        both = program.lower(block.gate_up, x)
        inner = limited_gate(program, both, block.activation, block.limit, block.up_offset)
    if block.inner_norm is not None:
        inner = program.lower(block.inner_norm, inner)
    return program.lower(block.down, inner)


def limited_gate(
    program: Program, both: Value, activation: Any, limit: float | None, up_offset: float
) -> Value:
    """Append the gate of a row [gate, up] whose halves are bounded or shifted before they meet."""
    inner = program.value(both.width // 2, both.times)
    bounds = {"limit": limit or 0.0, "up_offset": up_offset}
    return program.add(Opcode.GATE, both, inner, kind=activation_kind(activation), **bounds)


def _mlp(program: Program, block: MLP, x: Value) -> Value:
    if isinstance(block.act, nn.Module):
        up = program.lower(block.act, program.lower(block.up, x))
    else:
        width, epilogue = block.up.out_features, Epilogue.ACTIVATED
        up = _product(program, block.up, x, width, epilogue, block.activation)
    return program.lower(block.down, up)


def activate(program: Program, x: Value, activation: Any) -> Value:
    """Append the activation of that name."""
    kind = activation_kind(activation)
    return program.add(Opcode.ACTIVATE, x, program.value(x.width), kind=kind)


def activation_kind(name: Any) -> int:
    """The number that the kernels have for an activation."""
    if not isinstance(name, str) or name not in ACTIVATIONS:
        raise NotLowered(f"the activation {name}")
    return ACTIVATIONS[name]


def _xielu(program: Program, block: XIELU, x: Value) -> Value:
    slopes = F.softplus(block.alpha_p), block.beta + F.softplus(block.alpha_n)
    settings = torch.cat([s.detach().flatten() for s in (*slopes, block.beta, block.eps)])
    weight = program.as_float(settings)
    return program.add(Opcode.XIELU, x, program.value(x.width), weight=weight)


RULES: Mapping[type[nn.Module], Callable[..., Any]] = MappingProxyType(
    {
        Embedding: _embedding,
        LearnedPositions: _learned_positions,
        SinusoidalPositions: _sinusoidal_positions,
        LMHead: _head,
        Linear: _linear,
        ReplicatedLinear: _linear,
        ColumnLinear: _linear,
        RowLinear: _linear,
        RMSNorm: _norm,
        LayerNorm: _norm,
        GatedMLP: _gated_mlp,
        MLP: _mlp,
        XIELU: _xielu,
    }
)
