"""Diagrams of equations: every call and operation is there, and each reads what it should."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import assembler
from assembler.showing.diagram import Diagram

CONFIG = {"hidden_size": 32, "vocab_size": 64, "num_hidden_layers": 3}
CONF = """\
weight_map: llama
hidden_size: ${{hf:hidden_size}}
vocab_size: ${{hf:vocab_size}}
embed: {{block: Embedding}}
layers:
  count: ${{hf:num_hidden_layers}}
  streams: {streams}
  blocks:
    norm: {{block: RMSNorm, eps: 1.0e-5}}
    attn: {{block: RopeAttn, num_heads: 4}}
    mlp: {{block: GatedMLP, intermediate_size: 48, activation: silu}}
  wiring:
{layer}
final: {{block: RMSNorm, eps: 1.0e-5}}
lm_head: {{block: LMHead}}
wiring:
{model}
"""
MODEL = ["x = layers(embed(tokens))", "logits = lm_head(final(x))"]


def diagrams(
    folder: Path, layer: list[str], model: list[str] = MODEL, streams: str = "[x]"
) -> tuple[Diagram, Diagram]:
    """(of the layer, of the model) of these equations."""
    lines = ["\n".join(f"    - {line}" for line in lines) for lines in (layer, model)]
    conf = folder / "own.yaml"
    conf.write_text(CONF.format(streams=streams, layer=lines[0], model=lines[1]))
    (folder / "config.json").write_text(json.dumps(CONFIG))
    view = assembler.show_model(folder, conf).view
    return view.kinds[0].diagram, view.model.diagram


def reads(diagram: Diagram) -> dict[str, list[str]]:
    """What each node reads, by what is written on them; a second x is called x'."""
    label: dict[str, str] = {}
    for node in diagram.nodes:
        text = node.label
        while text in label.values():
            text += "'"
        label[node.name] = text
    return {
        label[node.name]: [label[e.source] for e in diagram.edges if e.target == node.name]
        for node in diagram.nodes
    }


def test_a_residual_layer(tmp_path: Path) -> None:
    layer, model = diagrams(tmp_path, ["x = x + attn(norm(x))", "x = x + mlp(x)"])
    assert reads(layer) == {
        "x": [],
        "norm": ["x"],
        "attn": ["norm"],
        "+": ["x", "attn"],
        "mlp": ["+"],
        "+'": ["+", "mlp"],
        "x'": ["+'"],
    }
    assert reads(model) == {
        "tokens": [],
        "embed": ["tokens"],
        "layers": ["embed"],
        "final": ["layers"],
        "lm_head": ["final"],
        "logits": ["lm_head"],
    }
    assert [node.output for node in layer.nodes] == [False] * 6 + [True]


def test_a_sum_of_three_is_one_node(tmp_path: Path) -> None:
    layer, _ = diagrams(tmp_path, ["h = norm(x)", "x = x + attn(h) + mlp(h)"])
    assert reads(layer)["+"] == ["x", "attn", "mlp"]
    layer, _ = diagrams(tmp_path, ["h = x + attn(x)", "x = h + mlp(norm(h))"])
    assert reads(layer)["+'"] == ["+", "mlp"], "what others read too stays a node"


def test_numbers_stand_on_the_node(tmp_path: Path) -> None:
    model = ["x = layers(2 * embed(tokens))", "logits = softcap(lm_head(final(x)) / 3, 30)"]
    layer = ["h = norm(x)", "x = sqrt(1 - 1/(2*(i+1))) * x + (1 - attn(h)) * mlp(h)"]
    inside, around = diagrams(tmp_path, layer, model)
    labels = [node.label for node in inside.nodes]
    assert "× 0.707…0.913" in labels, "what differs from layer to layer, from least to most"
    assert "1 −" in labels and "×" in labels
    assert reads(inside)["×"] == ["1 −", "mlp"]
    assert reads(around)["softcap 30"] == ["÷ 3"] and reads(around)["× 2"] == ["embed"]


def test_several_streams(tmp_path: Path) -> None:
    model = ["e = embed(tokens)", "x, first = layers(e, e)", "logits = lm_head(final(x + first))"]
    layer = ["x = x + attn(norm(x)) + mlp(first)", "first = -first"]
    inside, around = diagrams(tmp_path, layer, model, streams="[x, first]")
    assert reads(inside)["negate"] == ["first"]
    assert [node.label for node in inside.nodes if node.output] == ["x", "first"]
    assert reads(around)["layers"] == ["embed"] and reads(around)["+"] == ["layers"]


@pytest.mark.parametrize("release", ["deepseek-v2-lite", "command-r", "opt-350m", "mpt-7b"])
def test_releases_call_every_block(draw, release: str) -> None:
    for section in draw(release).view.sections:
        called = {node.label for node in section.diagram.nodes if node.kind == "block"}
        assert called == {block.name for block in section.blocks} != set()
        made = {node.name for node in section.diagram.nodes if not node.output}
        read = {edge.source for edge in section.diagram.edges}
        assert made == read, "nothing is computed in vain"
