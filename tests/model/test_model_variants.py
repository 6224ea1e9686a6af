"""Variants of the model itself: blocks and equations outside the layers that a config decides."""

from __future__ import annotations

import pytest
from toy_confs import Workspace, changed

from assembler.errors import SpecError, WiringError

TEXT = changed(
    (
        "wiring:\n  - x = layers",
        """\
kinds:
  end: bare if ${hf:no_norm,false} else normed
  head: shared if ${hf:tie,true} else own
variants:
  normed: {}
  bare:
    blocks: {norm: null}
    wiring:
      - x = layers(embed(tokens))
      - logits = lm_head(x)
  shared: {blocks: {lm_head: {tied: true}}}
  own: {blocks: {norm: {eps: "${hf:own_eps}"}}}
wiring:
  - x = layers""",
    )
)


def test_a_config_decides_the_ends_of_a_model(ws: Workspace) -> None:
    spec = ws.spec(TEXT, {"x": 1})
    assert spec.variants == ("normed", "shared")
    assert list(spec.blocks) == ["embed", "norm", "lm_head"] and spec.blocks["lm_head"].tied
    spec = ws.spec(TEXT, {"no_norm": True})
    assert spec.variants == ("bare", "shared") and list(spec.blocks) == ["embed", "lm_head"]
    assert not hasattr(ws.build(spec), "norm")
    spec = ws.spec(TEXT, {"tie": False, "own_eps": 0.5})
    assert not spec.blocks["lm_head"].tied and spec.blocks["norm"].eps == 0.5


def test_one_axis_needs_no_name_and_variants_may_be_alone(ws: Workspace) -> None:
    text = changed(("wiring:\n  - x = layers", "%s\nwiring:\n  - x = layers"))
    variants = "variants: {a: {blocks: {norm: {eps: 0.5}}}, b: {}}"
    spec = ws.spec(text % f"kinds: a if ${{hf:v}} == 1 else b\n{variants}", {"v": 1})
    assert (spec.variants, spec.blocks["norm"].eps) == (("a",), 0.5)
    assert ws.spec(text % "variants: {a: {blocks: {norm: {eps: 0.5}}}}").variants == ("a",)


def test_a_child_changes_a_variant(ws: Workspace) -> None:
    ws.write("parent", TEXT)
    child = "defaults: [parent]\nvariants: {shared: {blocks: {norm: {eps: 2.0}}}}"
    assert ws.spec(child, {"x": 1}).blocks["norm"].eps == 2.0
    overrides = ["conf.kinds.end=bare", "conf.variants.shared.blocks.lm_head.tied=false"]
    spec = ws.spec("defaults: [parent]", {"x": 1}, overrides)
    assert spec.variants == ("bare", "shared") and not spec.blocks["lm_head"].tied


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("end: bare if", "end: bar if", "my.yaml:18: kinds.end: unknown name 'bar' in 'bar if"),
        ("shared if", "i if", "my.yaml:19: kinds.head: unknown name 'i' in 'i if"),
        ("bare if ${hf:no_norm,false} else normed", "'1'", "'1' has no entry in variants"),
        (
            "  normed: {}",
            "  normed: {wirng: []}",
            "my.yaml:21: variants.normed.wirng: unknown",
        ),
        (
            "{norm: null}",
            "{nrm: null}",
            "my.yaml:23: variants.bare.blocks.nrm: null drops a",
        ),
        (
            "  shared: {",
            "  shared: {wiring: [logits = embed(tokens)], ",
            "my.yaml:27: variants.shared.wiring: what is 'bare' and 'shared' would have two ",
        ),
        (
            "{tied: true}",
            "{tide: true}",
            "my.yaml:27: variants.shared.blocks.lm_head.tide: un",
        ),
        (
            "kinds:\n  end: bare if ${hf:no_norm,false} else normed\n"
            "  head: shared if ${hf:tie,true} else own\n",
            "",
            "kinds: needed: it says which of the variants count",
        ),
    ],
)
def test_what_is_wrong(ws: Workspace, old: str, new: str, message: str) -> None:
    assert TEXT.count(old) == 1
    with pytest.raises(SpecError) as caught:
        ws.spec(TEXT.replace(old, new), {"no_norm": True})
    assert message in str(caught.value)


def test_equations_are_blamed_where_they_are_written(ws: Workspace) -> None:
    with pytest.raises(WiringError) as caught:
        ws.build(ws.spec(TEXT.replace("lm_head(x)", "head(x)"), {"no_norm": True}))
    assert str(caught.value).startswith("conf/my.yaml:26: unknown block or function 'head'")
    with pytest.raises(WiringError) as caught:
        ws.build(ws.spec(TEXT.replace("{norm: null}", "{}"), {"no_norm": True}))
    assert str(caught.value).startswith("conf/my.yaml:15: block 'norm' is declared but no equation")
