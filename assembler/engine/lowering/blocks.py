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
from assembler.engine.lowering.program import NotLowered, Program, Tokens, Value
from assembler.kernels.cpu_program import ACTIVATIONS, LOGITS, Opcode, SpanFields


def refuse(**options: bool) -> None:
    """Raise `NotLowered` if one of the options is in use."""
    for name, used in options.items():
        if used:
            raise NotLowered(name)


def _embedding(program: Program, block: Embedding, tokens: Tokens) -> Value:
    refuse(sharding=block.tp.size > 1)
    weight = program.address(block.weight)
    x = program.add(Opcode.EMBED, None, program.value(block.weight.shape[1]), weight=weight)
    if block.scale == 1.0:
        return x
    factor = torch.tensor(block.scale, dtype=block.weight.dtype).item()
    return program.add(Opcode.SCALE, x, program.value(x.width), scalar=factor)


def _learned_positions(program: Program, block: LearnedPositions, tokens: Tokens) -> Value:
    rows, width = block.weight.shape
    known = rows - block.offset
    program.num_positions = min(known, program.num_positions or known)
    fields = {"weight": program.address(block.weight), "offset": block.offset}
    return program.add(Opcode.POSITIONS, None, program.value(width), **fields)


def _sinusoidal_positions(program: Program, block: SinusoidalPositions, x: Value) -> Value:
    key = ("sines", block.half, block.spacing, block.offset)
    number = program.table(key, 1, lambda ctx, dtype: [block(torch.empty(0, dtype=dtype), ctx)])
    return program.add(Opcode.TABLE, None, program.value(2 * block.half), table=number)


def _linear(program: Program, block: nn.Linear, x: Value) -> Value:
    weight, bias = program.address(block.weight), program.address(block.bias)
    out = program.value(block.out_features)
    return program.add(Opcode.LINEAR, x, out, weight=weight, bias=bias)


def _head(program: Program, block: LMHead, x: Value) -> Value:
    refuse(sharding=block.tp.size > 1)
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
    both = program.lower(block.gate_up, x)
    inner = gate(program, both, block.activation, block.limit, block.up_offset)
    if block.inner_norm is not None:
        inner = program.lower(block.inner_norm, inner)
    return program.lower(block.down, inner)


def gate(
    program: Program, both: Value, activation: Any, limit: float | None, up_offset: float
) -> Value:
    """Append what is between the projections of a gated linear unit."""
    inner = program.value(both.width // 2, both.times)
    bounds = {"limit": limit or 0.0, "up_offset": up_offset}
    return program.add(Opcode.GATE, both, inner, kind=_activation(activation), **bounds)


def _mlp(program: Program, block: MLP, x: Value) -> Value:
    up = program.lower(block.up, x)
    if isinstance(block.act, nn.Module):
        return program.lower(block.down, program.lower(block.act, up))
    return program.lower(block.down, activate(program, up, block.activation))


def activate(program: Program, x: Value, activation: Any) -> Value:
    """Append the activation of that name."""
    return program.add(Opcode.ACTIVATE, x, program.value(x.width), kind=_activation(activation))


def _activation(name: Any) -> int:
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
