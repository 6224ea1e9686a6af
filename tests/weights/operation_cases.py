"""The operations of the map language, each beside the same thing written in plain torch.

Each case is a rule for `x`, the layout of its weight, what is on disk and what `x` becomes.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from assembler.blocks.parallel import Part, ShardDim

HIDDEN = 5
DIM = 6  # rows of a head
HEADS, KV, EXPERTS, WIDE = 4, 2, 3, 4


@dataclass(frozen=True)
class Case:
    rule: str
    layout: ShardDim
    disk: dict[str, torch.Tensor]
    expected: torch.Tensor


def random(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape)))


def column(*parts: Part, width: int = HIDDEN) -> ShardDim:
    return ShardDim("column", (sum(p.size for p in parts), width), 0, parts)


def qkv(kv: int = KV) -> tuple[Part, ...]:
    k, v = (Part(name, kv * DIM, DIM, True) for name in "kv")
    return Part("q", HEADS * DIM, DIM), k, v


def half(heads: torch.Tensor) -> torch.Tensor:
    """Interleaved rows of [heads, dims, ...] as halves."""
    return torch.cat([heads[:, ::2], heads[:, 1::2]], 1)


def codegen() -> Case:
    """CodeGen: four shards, each with its q, v and k rows."""
    rows = HEADS * DIM
    q, k, v = (random(rows, HIDDEN) + n for n in range(3))
    shards = [x.chunk(4)[n] for n in range(4) for x in (q, v, k)]
    layout = column(*qkv(kv=HEADS))
    rule = "{from: y, parts: [q, v, k], per: 4}"
    return Case(rule, layout, {"y.weight": torch.cat(shards)}, torch.cat([q, k, v]))


def grouped(kv: int) -> Case:
    """Falcon of every generation, InternLM2 and GPT-BigCode: a kv head's queries, then k, v."""
    q, k, v = (random(rows, HIDDEN) for rows in (HEADS * DIM, kv * DIM, kv * DIM))
    blocks = []
    for n in range(kv):
        blocks += [q.chunk(kv)[n], k.chunk(kv)[n], v.chunk(kv)[n]]
    rule = "{from: y, parts: [q, k, v], per: kv_head}"
    return Case(rule, column(*qkv(kv)), {"y.weight": torch.cat(blocks)}, torch.cat([q, k, v]))


def qwen3_next_qkvz() -> Case:
    """Gated delta net: for each key head its q, k, two value heads and their gates z."""
    heads, key, value, per = 2, 3, 4, 2
    q, k = random(heads, key, HIDDEN), random(heads, key, HIDDEN) + 1
    v, z = random(heads, per * value, HIDDEN), random(heads, per * value, HIDDEN) + 1
    fused = torch.cat([q, k, v, z], 1).flatten(0, 1)
    parts = [Part(n, heads * key, key) for n in "qk"]
    parts += [Part(n, heads * per * value, value) for n in "vz"]
    rule = "{from: y, parts: [q, k, v, z], per: kv_head}"
    expected = torch.cat([x.flatten(0, 1) for x in (q, k, v, z)])
    return Case(rule, column(*parts), {"y.weight": fused}, expected)


def qwen3_next_ba() -> Case:
    """The same, one number a value head; a unit is the value heads of one key head."""
    heads, per = 2, 3
    b, a = random(heads, per, HIDDEN), random(heads, per, HIDDEN) + 1
    parts = [Part(n, heads * per, per) for n in "ba"]
    fused = torch.cat([b, a], 1).flatten(0, 1)
    rule = "{from: y, parts: [b, a], per: kv_head}"
    return Case(rule, column(*parts), {"y.weight": fused}, torch.cat([b, a]).flatten(0, 1))


def gpt_oss() -> Case:
    """gpt-oss: [E, H, 2I], gate and up in turns along the last dim."""
    disk = random(EXPERTS, HIDDEN, 2 * WIDE)
    parts = (Part("gate", WIDE), Part("up", WIDE))
    layout = ShardDim("column", (EXPERTS, 2 * WIDE, HIDDEN), 1, parts)
    expected = torch.cat([disk[..., ::2], disk[..., 1::2]], -1).transpose(1, 2)
    rule = "{from: y, transpose: true, parts: [gate, up], per: row}"
    return Case(rule, layout, {"y.weight": disk}, expected)


def dbrx() -> Case:
    """DBRX: every expert's matrix in one, [E * I, H], to be [E, H, I]."""
    disk = random(EXPERTS * WIDE, HIDDEN)
    layout = ShardDim("row", (EXPERTS, HIDDEN, WIDE), 2, (Part("in", WIDE),))
    expected = disk.reshape(EXPERTS, WIDE, HIDDEN).transpose(1, 2)
    return Case("{from: y, rearrange: (e i) h -> e h i}", layout, {"y.weight": disk}, expected)


def convolution() -> Case:
    """Mamba: a depthwise convolution stored as [channels, 1, width]."""
    disk = random(4, 1, 3)
    layout = ShardDim("column", (4, 3), 0, (Part("x", 4),))
    return Case("{from: y, rearrange: c 1 w -> c w}", layout, {"y.weight": disk}, disk[:, 0])


def sized_rearrangement() -> Case:
    disk = random(HEADS * 2 * 3, HIDDEN)
    rule = "{from: y, rearrange: {pattern: (h two d) c -> (two h d) c, sizes: {two: 2, d: 3}}}"
    expected = disk.view(HEADS, 2, 3, HIDDEN).transpose(0, 1).reshape(-1, HIDDEN)
    return Case(rule, ShardDim("replicated", tuple(disk.shape)), {"y.weight": disk}, expected)


def partial_rope() -> Case:
    """Partial rotary embeddings: the first four of six rows of a head rotate."""
    disk = random(HEADS * DIM, HIDDEN)
    heads = disk.view(HEADS, DIM, HIDDEN)
    expected = torch.cat([half(heads[:, :4]), heads[:, 4:]], 1).flatten(0, 1)
    rule = "{from: y, rope: {order: interleaved_to_half, dims: 4}}"
    return Case(rule, column(qkv()[0]), {"y.weight": disk}, expected)


def latent_rope() -> Case:
    """Latent attention (DeepSeek-V2): the last rows of a head rotate."""
    disk = random(HEADS * DIM, HIDDEN)
    heads = disk.view(HEADS, DIM, HIDDEN)
    expected = torch.cat([heads[:, :2], half(heads[:, 2:])], 1).flatten(0, 1)
    rule = "{from: y, rope: {order: interleaved_to_half, dims: 4, at: end}}"
    return Case(rule, column(qkv()[0]), {"y.weight": disk}, expected)


def rope_by_share() -> Case:
    disk = random(HEADS * 8, HIDDEN)
    heads = disk.view(HEADS, 8, HIDDEN)
    expected = torch.cat([half(heads[:, :4]), heads[:, 4:]], 1).flatten(0, 1)
    rule = "{from: y, rope: {order: interleaved_to_half, partial: 0.5}}"
    return Case(rule, column(Part("q", 32, 8)), {"y.weight": disk}, expected)


def rope_of_some_parts() -> Case:
    """A fused tensor whose q and k rotate and whose v does not; k has heads of its own."""
    q, k, v = (random(part.size, HIDDEN) for part in qkv())
    rule = "{from: y, parts: [q, k, v], rope: {order: interleaved_to_half, parts: [q, k]}}"
    halves = [half(x.unflatten(0, (-1, DIM))).flatten(0, 1) for x in (q, k)]
    return Case(rule, column(*qkv()), {"y.weight": torch.cat([q, k, v])}, torch.cat([*halves, v]))


def rope_with_heads() -> Case:
    """The head count in the rule, for a norm whose module knows no heads."""
    disk = random(24)
    rule = "{from: y, rope: {order: half_to_interleaved, heads: 4}}"
    heads = disk.view(4, 2, 3)
    layout = ShardDim("replicated", (24,))
    return Case(rule, layout, {"y.weight": disk}, heads.transpose(1, 2).reshape(-1))


def sliced() -> Case:
    disk = random(9, HIDDEN)
    return Case("{from: y, slice: 2}", column(Part("v", 6)), {"y.weight": disk}, disk[2:8])


def padded() -> Case:
    disk = random(5, HIDDEN)
    expected = torch.cat([disk, torch.full((3, HIDDEN), -1.5)])
    return Case("{from: y, pad: -1.5}", column(Part("v", 8)), {"y.weight": disk}, expected)


def padded_and_transposed() -> Case:
    disk = random(HIDDEN, 2)
    expected = torch.cat([disk.T, torch.zeros(6, HIDDEN)])
    rule = "{from: y, transpose: true, pad: 0}"
    return Case(rule, column(Part("v", 8)), {"y.weight": disk}, expected)


def sliced_or_padded() -> Case:
    """Vocabularies of any size fit; what is there is taken."""
    disk = random(8, HIDDEN)
    return Case("{from: y, slice: 0, pad: 0}", column(Part("v", 8)), {"y.weight": disk}, disk)


def affine() -> Case:
    disk, layout = random(6), ShardDim("replicated", (6,))
    rule = "{from: y, affine: {scale: 2, offset: -1}}"
    return Case(rule, layout, {"y.weight": disk}, disk * 2 - 1)


def negative_exp() -> Case:
    """Mamba's A_log."""
    disk = random(6).bfloat16()
    rule = "{from: y, negative_exp: true}"
    expected = -torch.exp(disk.float())
    return Case(rule, ShardDim("replicated", (6,)), {"y.weight": disk}, expected)


def first_alternative() -> Case:
    disk = {"gamma.weight": random(6)}
    return Case("{any: [gamma, y]}", ShardDim("replicated", (6,)), disk, random(6))


def second_alternative() -> Case:
    gate, up = random(4, HIDDEN), random(4, HIDDEN) + 1
    rule = "{any: [[gate, up], {from: both, parts: [gate, up]}]}"
    layout = column(Part("gate", 4), Part("up", 4))
    return Case(rule, layout, {"both.weight": torch.cat([gate, up])}, torch.cat([gate, up]))


def filled() -> Case:
    disk, expected = {"other.weight": torch.zeros(1)}, torch.full((8, HIDDEN), 0.25)
    return Case("{any: [y, {fill: 0.25}]}", column(Part("v", 8)), disk, expected)


CASES = {
    "codegen": codegen(),
    "falcon, one kv head": grouped(1),
    "falcon, kv groups": grouped(2),
    "falcon, equal heads": grouped(4),
    "qwen3-next qkvz": qwen3_next_qkvz(),
    "qwen3-next ba": qwen3_next_ba(),
    "gpt-oss": gpt_oss(),
    "dbrx": dbrx(),
    "convolution": convolution(),
    "sized rearrangement": sized_rearrangement(),
    "partial rope": partial_rope(),
    "latent rope": latent_rope(),
    "rope by share": rope_by_share(),
    "rope of some parts": rope_of_some_parts(),
    "rope with heads": rope_with_heads(),
    "sliced": sliced(),
    "padded": padded(),
    "padded and transposed": padded_and_transposed(),
    "sliced or padded": sliced_or_padded(),
    "affine": affine(),
    "negative exp": negative_exp(),
    "first alternative": first_alternative(),
    "second alternative": second_alternative(),
    "filled": filled(),
}


def text_of(case: Case) -> str:
    """The map; what a rule leaves aside is ignored."""
    kind, rest = case.layout.kind, "ignore: {other.weight: {reason: not needed, optional: true}}\n"
    split = "" if kind == "replicated" else f"tp: {{{kind}: x}}\n"
    return f"weights:\n  x: {case.rule}\n{split}{rest}"
