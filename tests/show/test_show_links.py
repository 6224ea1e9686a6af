"""Links between both sides: folded, and still exactly the tensors and parameters of the plan."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import replace

import pytest
from sparse_releases import assembled

from assembler.showing.links import find_links
from assembler.showing.names import expand, layers_text, split_layer
from assembler.weights.plan import LoadPlan
from assembler.weights.quantized import tensors_of

# Plain, two kinds of layers, experts in one tensor and in many, tensors in pairs, odd names.
RELEASES = ["llama-3.1-8b", "gemma-2-9b", "gpt-oss-20b", "olmoe-1b-7b", "qwen3-4b-fp8", "gpt2"]


def both_ways(plan: LoadPlan) -> tuple[dict[str, set[str]], dict[str, set[str]]]:
    """(by parameter, by tensor) as the plan has it, and what of it the links say."""
    wanted, told = defaultdict(set), defaultdict(set)
    for piece in plan.pieces:
        wanted[piece.target].update(info.name for info in tensors_of(piece.info))
    for parameter, links in find_links(plan).items():
        for link in links:
            for layer in link.layers or (None,):
                (target,) = expand(parameter, layer)
                told[target].update(link.names(layer))
    return dict(wanted), dict(told)


@pytest.mark.parametrize("release", RELEASES)
def test_links_are_the_plan(release: str) -> None:
    plan = assembled(release).plan
    wanted, told = both_ways(plan)
    assert told == wanted
    links = [link for links in find_links(plan).values() for link in links]
    assert len(links) < 60, "folded over layers and experts"
    assert sum(link.nbytes * link.count for link in links) == pytest.approx(
        sum(piece.nbytes for piece in plan.pieces), rel=1e-6
    )


def test_a_fused_parameter_names_its_parts_in_order() -> None:
    links = find_links(assembled("llama-3.1-8b").plan)["layers.{i}.attn.qkv.weight"]
    assert [link.part for link in links] == ["q", "k", "v"]
    assert [link.rows for link in links] == ["rows 0:4096", "rows 4096:5120", "rows 5120:6144"]
    assert links[1].source == "model.layers.{i}.self_attn.k_proj.weight"
    assert links[1].layers == tuple(range(32)) and links[1].shape == (1024, 4096)


def test_names_that_follow_no_rule_are_told_one_by_one() -> None:
    """As if two layers of the checkpoint had changed places."""
    plan = assembled("gpt2").plan
    three, five = "h.3.mlp.c_fc.weight", "h.5.mlp.c_fc.weight"
    names = {three: five, five: three}

    def renamed(piece):
        info = replace(piece.info, name=names.get(piece.source, piece.source))
        return replace(piece, source=info.name, info=info)

    odd = replace(plan, pieces=tuple(map(renamed, plan.pieces)))
    wanted, told = both_ways(odd)
    assert told == wanted
    links = find_links(odd)["layers.{i}.mlp.up.weight"]
    assert "h.{i+2}.mlp.c_fc.weight" in [link.source for link in links if link.layers == (3,)]


def test_names_of_several_layers() -> None:
    assert split_layer("layers.12.attn.qkv.weight") == ("layers.{i}.attn.qkv.weight", 12)
    assert split_layer("norm.weight") == ("norm.weight", None)
    assert list(expand("h.{i+1}.w", 3)) == ["h.4.w"]
    assert list(expand("h.{i-1}.e.{0-1,5}.w", 3)) == ["h.2.e.0.w", "h.2.e.1.w", "h.2.e.5.w"]
    assert layers_text(range(28)) == "0-27"
    assert layers_text(range(1, 42, 2)) == "1-41 step 2"
    assert layers_text([0, 1, 2, 4, 5]) == "0-2,4-5"
    assert layers_text([n for n in range(60) if n % 6 != 5]) == "0-4,6-10,12-16,18-22,24-28,…,54-58"
