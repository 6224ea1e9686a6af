"""Rules for attention over cached latents."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

from torch import nn

from assembler.blocks.latent_attention import LatentAttn
from assembler.engine.lowering.attention import page_shift, scale_by_position, turn
from assembler.engine.lowering.blocks import norm_span
from assembler.engine.lowering.program import Program, Value, whole
from assembler.kernels.cpu_program import AttentionFields, LatentFields, Opcode, SpanFields


def _latent_attention(program: Program, block: LatentAttn, x: Value) -> Value:
    keys, _ = program.caches[block.cache_index]
    fields = {
        "attention": _attention_fields(block, keys.shape[1]),
        "latent": LatentFields(block.nope_dim, block.rope_dim, block.rank, block.v_dim),
    }
    cached = program.address(keys)
    _store_latents(program, block, x, cached)
    heads, weight = block.num_heads, block.kv_b.weight
    program.address(weight)
    absorbed = program.value(heads * (block.rank + block.rope_dim))
    queries = _queries(program, block, x)
    program.add(Opcode.ABSORB, queries, absorbed, weight=weight.data_ptr(), **fields)
    read = program.value(absorbed.width)  # latents, and after each what is made of rotated keys
    program.add(Opcode.ATTEND, absorbed, read, keys=cached, values=cached, **fields)
    values = program.value(heads * block.v_dim)
    to_values = weight[block.kv_b.local_sizes[0] :].data_ptr()
    program.add(Opcode.READ_LATENT, read, values, weight=to_values, **fields)
    return program.lower(block.o, values)


def _attention_fields(block: LatentAttn, page_size: int) -> AttentionFields:
    return AttentionFields(
        heads=block.num_heads,
        kv_heads=1,
        head_dim=block.rank + block.rope_dim,
        page_size=page_size,
        page_shift=page_shift(page_size),
        scale=block.scale,
    )


def _store_latents(program: Program, block: LatentAttn, x: Value, cached: int | None) -> None:
    """Put the normed latent and the turned key of every token into the cache."""
    latents = program.lower(block.kv_a, x)
    span = SpanFields(0, 1, block.rank, block.rank)
    norm_span(program, block.kv_a_norm, latents, span, latents)
    if block.rope is not None:
        span = SpanFields(block.rank, 1, block.rope_dim, block.rope.dim)
        turn(program, block.rope, latents, span)
    program.add(Opcode.STORE, latents, latents, keys=cached)


def _queries(program: Program, block: LatentAttn, x: Value) -> Value:
    """The queries of all heads, [nope + rope] each, the second part turned."""
    if block.q is not None:
        queries = program.lower(block.q, x)
    else:
        latent = program.lower(block.q_a_norm, program.lower(block.q_a, x))
        queries = program.lower(block.q_b, latent)
    if block.position_scale is not None:
        scale_by_position(program, block.position_scale, queries, whole(queries))
    if block.rope is not None:
        span = SpanFields(block.nope_dim, block.num_heads, block.head_dim, block.rope.dim)
        turn(program, block.rope, queries, span)
    return queries


RULES: Mapping[type[nn.Module], Callable[..., Any]] = MappingProxyType(
    {LatentAttn: _latent_attention}
)
