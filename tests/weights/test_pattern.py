"""Named wildcards: filling, matching, arithmetic, and what is not a pattern."""

from __future__ import annotations

import pytest

from assembler.errors import WeightMapError
from assembler.weights.pattern import PatternTree, parse_pattern, parse_target


@pytest.mark.parametrize(
    ("text", "values", "name"),
    [
        ("model.norm", {}, "model.norm"),
        ("h.{i}.w", {"i": 12}, "h.12.w"),
        ("h.{i+1}.w", {"i": 0}, "h.1.w"),
        ("h.{ i - 2 }.w", {"i": 5}, "h.3.w"),
        ("h.{2*i+1}.w", {"i": 3}, "h.7.w"),
        ("h.{i*3}.w", {"i": 3}, "h.9.w"),
        ("layer_{i}.e.{e}", {"i": 1, "e": 2}, "layer_1.e.2"),
        ("a.{i}.b.{i}", {"i": 4}, "a.4.b.4"),
    ],
)
def test_fill_and_match_are_inverse(text: str, values: dict[str, int], name: str):
    pattern = parse_pattern(text, "f:1")
    assert pattern.fill(values) == name
    assert pattern.match(name) == values


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("h.{i}.w", "h.1.w.x"),
        ("h.{i}.w", "xh.1.w"),
        ("h.{i}.w", "h.x.w"),
        ("h.{i}.w", "h.01.w"),
        ("h.{i}.w", "hx1.w"),
        ("h.{i+1}.w", "h.0.w"),
        ("h.{2*i}.w", "h.3.w"),
        ("a.{i}.b.{i}", "a.4.b.5"),
    ],
)
def test_what_does_not_match(text: str, name: str):
    assert parse_pattern(text, "f:1").match(name) is None


def test_fill_known_leaves_the_rest():
    pattern = parse_pattern("h.{i}.e.{e}.w", "f:1")
    assert pattern.fill_known({"i": 2}) == "h.2.e.{e}.w"
    assert pattern.names == ("i", "e")
    assert pattern.form == "h.{}.e.{}.w"


@pytest.mark.parametrize("text", ["h.{}.w", "h.{i", "h.i}", "h.{{i}}", "h.{1}", "h.{i/2}", "{i+j}"])
def test_broken_wildcards(text: str):
    with pytest.raises(WeightMapError, match=r"^f:1: "):
        parse_pattern(text, "f:1")


@pytest.mark.parametrize("text", ["", "a..b", ".a", "a.", "h.{0*i}.w", "h.{2*i*3}"])
def test_broken_names(text: str):
    with pytest.raises(WeightMapError, match=r"^f:1: "):
        parse_pattern(text, "f:1")


@pytest.mark.parametrize("text", ["h.{i+1}.w", "h_{i}.w", "a.{i}.b.{i}"])
def test_targets_are_stricter(text: str):
    parse_pattern(text, "f:1")
    with pytest.raises(WeightMapError, match=r"^f:1: "):
        parse_target(text, "f:1")


def test_the_tree_finds_whole_paths():
    tree: PatternTree[str] = PatternTree()
    for text in ("layers.{i}.attn", "layers.{i}.attn.qkv", "layers.0.attn", "layers", "{i}"):
        tree.add(parse_target(text, "f:1"), text)
    assert tree.find("layers.3.attn") == ["layers.{i}.attn"]
    assert sorted(tree.find("layers.0.attn")) == ["layers.0.attn", "layers.{i}.attn"]
    assert tree.find("layers.3.attn.qkv") == ["layers.{i}.attn.qkv"]
    assert tree.find("7") == ["{i}"]
    assert tree.find("layers.x.attn") == tree.find("layers.3") == tree.find("attn") == []
