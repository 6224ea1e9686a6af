"""Random maps of one fused parameter, with the tensors on disk worked out in plain torch.

The parameter is drawn first; what must stand on disk for a rule to load it is written with `chunk`,
`cat` and lists of rows, without any of the ops under test.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from hypothesis import strategies as st

from assembler.blocks.parallel import Part, ShardDim

Draw = Callable[[st.SearchStrategy], Any]


@dataclass(frozen=True)
class RandomMap:
    """A map of the module `x`, what is on disk, and the parameter that it holds."""

    text: str
    layout: ShardDim
    disk: dict[str, torch.Tensor]
    whole: torch.Tensor
    ranks: int

    def share(self, rank: int) -> torch.Tensor:
        """The rows of every part that a rank holds."""
        dim, parts = self.layout.dim, self.layout.parts
        pieces = self.whole.split([part.size for part in parts], dim)
        rows = [torch.tensor(list(part.rank_rows(rank, self.ranks))) for part in parts]
        chosen = (p.index_select(dim, r) for p, r in zip(pieces, rows, strict=True))
        return torch.cat(list(chosen), dim)


@st.composite
def random_maps(draw: Draw, alternatives: bool = False) -> RandomMap:
    """Parts of any sizes, spread over tensors in any order and grouping, with ops on each."""
    unit = draw(st.sampled_from([2, 4, 6]))
    counts = draw(st.lists(st.sampled_from([1, 2, 4]), min_size=1, max_size=4))
    parts = tuple(
        Part(f"p{n}", count * unit, unit, replicate=True) for n, count in enumerate(counts)
    )
    experts = draw(st.sampled_from([0, 0, 3]))
    width = draw(st.integers(1, 5))
    rows = sum(part.size for part in parts)
    shape = (experts, rows, width) if experts else (rows, width)
    layout = ShardDim("column", shape, 1 if experts else 0, parts)
    whole = torch.randn(shape, generator=torch.Generator().manual_seed(rows * width))
    rules, disk = [], {}
    pieces = dict(zip(parts, whole.split([part.size for part in parts], layout.dim), strict=True))
    for n, group in enumerate(_groups(draw, parts)):
        name = f"t{n}.{{e}}" if experts else f"t{n}"
        rule = {"from": name} | ({"parts": [p.name for p in group]} if len(parts) > 1 else {})
        values = [pieces[part].unbind() if experts else [pieces[part]] for part in group]
        rule, tensors = _on_disk(draw, rule, group, list(zip(*values, strict=True)))
        rules.append(rule)
        for e, tensor in enumerate(tensors):
            disk[f"t{n}.{e}.weight" if experts else f"t{n}.weight"] = tensor.contiguous()
    if alternatives and draw(st.booleans()):
        rules = [_among_others(draw, rule) for rule in rules]
    text = (
        f"weights: {json.dumps({'x': rules if len(rules) > 1 else rules[0]})}\ntp: {{column: x}}\n"
    )
    ranks = draw(st.sampled_from([1, 2, 4]))
    return RandomMap(text, layout, disk, whole, ranks)


def _among_others(draw: Draw, rule: dict[str, Any]) -> dict[str, Any]:
    """The rule as one of two ways, of which the other is not on disk."""
    other = rule | {"from": f"absent_{rule['from']}"}
    return {"any": draw(st.permutations([rule, other]))}


def _groups(draw: Draw, parts: tuple[Part, ...]) -> list[list[Part]]:
    """The parts in any order, cut into tensors."""
    order = draw(st.permutations(parts))
    groups = [[order[0]]]
    for part in order[1:]:
        if draw(st.booleans()):
            groups[-1].append(part)
        else:
            groups.append([part])
    return groups


def _on_disk(
    draw: Draw, rule: dict[str, Any], group: list[Part], stack: list[tuple[torch.Tensor, ...]]
) -> tuple[dict[str, Any], list[torch.Tensor]]:
    """(the rule with options, the tensor on disk for each member of the stack)."""
    rope = _rope(draw, group) if draw(st.booleans()) else None
    blocks = _blocks(draw, rule, group)
    scale = draw(st.sampled_from([1.0, 1.0, 0.5, -4.0]))
    transpose = draw(st.booleans())
    if rope:
        rule = rule | {"rope": rope}
    if scale != 1:
        rule = rule | {"affine": {"scale": scale}}
    if transpose:
        rule = rule | draw(st.sampled_from([{"transpose": True}, {"rearrange": "b a -> a b"}]))
    tensors = []
    for values in stack:
        rotated = [_unrotated(x, part, rope) for x, part in zip(values, group, strict=True)]
        chunks = [x.chunk(blocks) for x in rotated]
        fused = torch.cat([chunk[n] for n in range(blocks) for chunk in chunks]) / scale
        tensors.append(fused.T if transpose else fused)
    return rule, tensors


def _blocks(draw: Draw, rule: dict[str, Any], group: list[Part]) -> int:
    """The number of blocks in which the parts repeat; adds `per` to the rule."""
    if len(group) < 2:
        return 1
    fewest = min(part.units for part in group)
    choices: list[tuple[Any, int]] = [(None, 1), ("kv_head", fewest), (2, 2)]
    if len({part.units for part in group}) == 1:
        choices += [("head", fewest), ("row", group[0].size)]
    per, blocks = draw(st.sampled_from(choices))
    if per is not None:
        rule["per"] = per
    return blocks


def _rope(draw: Draw, group: list[Part]) -> dict[str, Any]:
    order = draw(st.sampled_from(["interleaved_to_half", "half_to_interleaved"]))
    chosen = draw(st.lists(st.sampled_from([p.name for p in group]), min_size=1, unique=True))
    dims = draw(st.integers(1, group[0].unit // 2)) * 2
    at = draw(st.sampled_from(["start", "end"]))
    rope = {"order": order, "dims": dims, "at": at}
    return rope | ({"parts": chosen} if len(group) > 1 else {})


def _unrotated(x: torch.Tensor, part: Part, rope: dict[str, Any] | None) -> torch.Tensor:
    """The rows of a part as they stand on disk, found one by one."""
    if rope is None or part.name not in rope.get("parts", [part.name]):
        return x
    width, rotary = part.unit, rope["dims"]
    start = width - rotary if rope["at"] == "end" else 0
    rows = []
    for head in range(part.units):
        own = list(range(width))
        for pair in range(rotary // 2):
            halves, neighbours = (pair, rotary // 2 + pair), (2 * pair, 2 * pair + 1)
            disk, model = neighbours, halves
            if rope["order"] == "half_to_interleaved":
                disk, model = halves, neighbours
            for d, m in zip(disk, model, strict=True):
                own[start + d] = start + m
        rows += [head * width + row for row in own]
    return x[torch.tensor(rows)]
