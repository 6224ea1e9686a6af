"""Rules for attention over keys and values of its own."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

from torch import nn

from assembler.blocks.alibi import AlibiAttn
from assembler.blocks.attention import RopeAttn
from assembler.blocks.attention_gate import OutputGate
from assembler.blocks.position_scale import PositionScale, position_factors
from assembler.blocks.rope import RotaryEmbedding
from assembler.blocks.self_attention import SelfAttention
from assembler.engine.lowering.blocks import activate, norm_span, refuse
from assembler.engine.lowering.program import Program, Value
from assembler.kernels.cpu_program import AttentionFields, Opcode, SpanFields

_MAX_ROTARY_DIM = 1024  # of `rotate_head` in cpu/elementwise.h


def _rope_attention(program: Program, block: RopeAttn, x: Value) -> Value:
    qkv = program.lower(block.qkv, x)
    how = block.qk_norm
    if how is not None and not how.after_rope:
        _qk_norms(program, block, qkv)
    _clip(program, block, qkv)
    dim, heads, kv_heads = block.head_dim, block.num_heads, block.num_kv_heads
    if block.rope is not None:
        span = SpanFields(0, heads + kv_heads, dim, block.rope.dim)
        turn(program, block.rope, qkv, span)
    if how is not None and how.after_rope:
        _qk_norms(program, block, qkv)
    if block.position_scale is not None:
        queries = SpanFields(0, 1, heads * dim, heads * dim)
        scale_by_position(program, block.position_scale, qkv, queries)
    out = _attend(program, block, qkv)
    if block.out_norm is not None:
        out = program.lower(block.out_norm, out)
    if block.gate is not None:
        out = _gate(program, block.gate, x, out)
    return program.lower(block.o, out)


def _alibi_attention(program: Program, block: AlibiAttn, x: Value) -> Value:
    qkv = program.lower(block.qkv, x)
    _clip(program, block, qkv)
    return program.lower(block.o, _attend(program, block, qkv))


def _clip(program: Program, block: SelfAttention, qkv: Value) -> None:
    if block.clip_qkv is not None:
        program.add(Opcode.CLIP, qkv, qkv, scalar=block.clip_qkv)


def _attend(program: Program, block: SelfAttention, qkv: Value) -> Value:
    """Store a step's keys and values, and let its queries read what is there."""
    keys, values = program.caches[block.cache_index]
    options, page_size = block.options(), keys.shape[1]
    slopes = options.alibi_slopes
    if options.alibi_rounded:
        slopes = slopes.bfloat16()
    dim, heads, kv_heads = block.head_dim, block.num_heads, block.num_kv_heads
    attention = AttentionFields(
        heads=heads,
        kv_heads=kv_heads,
        head_dim=dim,
        page_size=page_size,
        page_shift=page_shift(page_size),
        window=options.window or 0,
        chunk=options.chunk or 0,
        scale=options.scale,
        softcap=options.softcap or 0.0,
        sinks=program.as_float(options.sinks),
        slopes=program.as_float(slopes),
        rounded=int(options.alibi_rounded),
    )
    caches = {"keys": program.address(keys), "values": program.address(values)}
    stored = SpanFields(heads * dim, 1, 0, kv_heads * dim)
    program.add(Opcode.STORE, qkv, qkv, span=stored, **caches)
    out = program.value(heads * dim)
    return program.add(Opcode.ATTEND, qkv, out, attention=attention, **caches)


def page_shift(size: int) -> int:
    """n where size is 2 ** n, else -1."""
    return size.bit_length() - 1 if size & (size - 1) == 0 else -1


def _qk_norms(program: Program, block: RopeAttn, qkv: Value) -> None:
    """Append the norms of the queries and of the keys, in place."""
    dim, first = block.head_dim, 0
    counts = (block.num_heads, block.num_kv_heads)
    for norm, count in zip((block.q_norm, block.k_norm), counts, strict=True):
        span = SpanFields(first, count, dim, dim)
        if block.qk_norm.over == "full":
            span = SpanFields(first, 1, count * dim, count * dim)
        norm_span(program, norm, qkv, span, qkv)
        first += count * dim


def turn(program: Program, rope: RotaryEmbedding, x: Value, span: SpanFields) -> None:
    """Append the rotation of each unit of `span`, in place."""
    refuse(rotary_dim=rope.dim > _MAX_ROTARY_DIM)
    # A rotation that has a border of length depends on the length of the text, too.
    table = program.table(rope._key, 2, rope, by_position=rope.length_border is None)
    interleaved = int(rope.style == "interleaved")
    program.add(Opcode.TURN, x, x, span=span, interleaved=interleaved, **table)


def scale_by_position(
    program: Program, settings: PositionScale, x: Value, span: SpanFields
) -> None:
    """Append the scaling of `span` by what depends on the position, in place."""
    table = program.table(settings, 1, lambda ctx, dtype: [position_factors(settings, ctx, dtype)])
    factors = program.add(Opcode.TABLE, None, program.value(1), **table)
    program.add(Opcode.MULTIPLY, x, x, input2=factors.place, span=span, shared=span.width)


def _gate(program: Program, block: nn.Module, x: Value, out: Value) -> Value:
    refuse(**{type(block).__name__: type(block) is not OutputGate})
    gates = activate(program, program.lower(block.proj, x), block.activation)
    gated = program.value(out.width)
    shared = out.width // gates.width
    return program.add(Opcode.MULTIPLY, out, gated, input2=gates.place, shared=shared)


RULES: Mapping[type[nn.Module], Callable[..., Any]] = MappingProxyType(
    {RopeAttn: _rope_attention, AlibiAttn: _alibi_attention}
)
