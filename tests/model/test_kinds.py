"""Layers that differ: `kinds` gives each layer's kind, `variants` what a kind changes."""

from __future__ import annotations

from typing import Any

import pytest
from toy_confs import Workspace

from assembler.errors import SpecError, WiringError
from assembler.model.spec import ModelSpec

CONFIG = {
    "layer_types": ["full", "sliding", "full"],
    "flags": [1, 0, 1],
    "moe": [0, 2],
    "nested": [[["full", "sliding"], 2]],
}


def _spec(ws: Workspace, layers: str, count: int = 3) -> ModelSpec:
    return ws.base(("count: 2", f"count: {count}\n{layers}"), config=CONFIG)


def _layer_kinds(ws: Workspace, kinds: str, variants: str = "{full: {}, sliding: {}}") -> Any:
    return _spec(ws, f"  kinds: {kinds}\n  variants: {variants}").layer_kinds


@pytest.mark.parametrize(
    ("kinds", "expected"),
    [
        ("[full, sliding, full]", "full sliding full"),
        ("[full, sliding, full, full, other]", "full sliding full"),
        ("${hf:layer_types}", "full sliding full"),
        ("sliding", "sliding sliding sliding"),
        ("full if i % 2 else sliding", "sliding full sliding"),
        ("full if (i + 1) % 3 == 0 else sliding", "sliding sliding full"),
        ("full if i >= max(1, 2) else sliding", "sliding sliding full"),
        ("full if i in ${hf:moe} else sliding", "full sliding full"),
        ("full if i in ${hf:absent,[]} else sliding", "sliding sliding sliding"),
        ("full if ${hf:flags}[i] else sliding", "full sliding full"),
        ("full if not ${hf:flags}[(i + 1) % 3] else sliding", "full sliding sliding"),
        ("${hf:nested.0.0}[i % len(${hf:nested.0.0})]", "full sliding full"),
        ("${hf:nested}[0][0][0]", "full full full"),
        ("full if 0 < i < 2 or i == 0 and not i else sliding", "full full sliding"),
        ("\"${hf:absent,'full if i else sliding'}\"", "sliding full full"),
    ],
)
def test_the_kind_of_each_layer(ws: Workspace, kinds: str, expected: str) -> None:
    if "other" in kinds:  # beyond count, yet every name must be known
        with pytest.raises(SpecError, match=r"'other' has no entry in layers\.variants"):
            _layer_kinds(ws, kinds)
        kinds = kinds.replace("other", "full")
    assert _layer_kinds(ws, kinds) == tuple(expected.split())


@pytest.mark.parametrize(
    ("kinds", "variants", "expected"),
    [
        ("${hf:flags}", "{0: {}, 1: {}}", ("1", "0", "1")),
        ("[true, false, true]", "{true: {}, false: {}}", ("true", "false", "true")),
        ("[full-attn, full-attn, full-attn]", "{full-attn: {}}", ("full-attn",) * 3),
    ],
)
def test_kinds_may_be_numbers_flags_and_any_text(
    ws: Workspace, kinds: str, variants: str, expected: tuple[str, ...]
) -> None:
    spec = _spec(ws, f"  kinds: {kinds}\n  variants: {variants}")
    assert spec.layer_kinds == expected
    ws.build(spec)


def test_without_kinds_all_layers_are_alike(ws: Workspace) -> None:
    assert ws.base().layer_kinds == ("layer", "layer")
    assert _spec(ws, "  variants: {only: {blocks: {mlp: {size: 5}}}}").layer_kinds == ("only",) * 3


def test_what_a_variant_changes(ws: Workspace) -> None:
    spec = _spec(
        ws,
        """\
  kinds: [same, wider, dropped]
  variants:
    same:
    wider:
      blocks:
        mlp: {size: 24}
        mlp_norm: {block: LayerNorm}
        post: {block: RMSNorm, eps: 0.5}
      wiring: ["x = x + attn(attn_norm(x))", "x = x + post(mlp(mlp_norm(x)))"]
    dropped:
      blocks: {mlp: null, mlp_norm: null}
      wiring: [x = x + attn(attn_norm(x))]
""",
    )
    same, wider, dropped = (spec.kinds[kind] for kind in spec.layer_kinds)
    assert list(same.blocks) == ["attn_norm", "attn", "mlp_norm", "mlp"]
    assert (wider.blocks["mlp"].size, wider.blocks["mlp"].activation) == (24, "silu")
    assert (wider.blocks["mlp_norm"].block, wider.blocks["mlp_norm"].eps) == ("LayerNorm", 1e-5)
    assert wider.blocks["post"].eps == 0.5
    assert len(wider.wiring) == 2
    assert list(dropped.blocks) == ["attn_norm", "attn"]
    model = ws.build(spec)
    assert [hasattr(layer, "mlp") for layer in model.layers] == [True, True, False]


def test_a_variant_s_field_replaces_the_shared_one_whole(ws: Workspace) -> None:
    text = "{size: 16}\n    mlp2: {block: Mix, heads: 1, table: {theta: 3.0, type: a}}"
    spec = ws.base(
        ("{block: Feed, size: 16}", text.replace("{size: 16}", "{block: Feed, size: 16}")),
        ("count: 2", "count: 2\n  kinds: a\n  variants: {a: {blocks: {mlp2: {table: {type: b}}}}}"),
        ("x = x + mlp(mlp_norm(x))", "x = x + mlp(mlp2(mlp_norm(x)))"),
    )
    assert spec.kinds["a"].blocks["mlp2"].table.theta == 1.0


def test_a_layer_may_do_nothing(ws: Workspace) -> None:
    dropped = "attn: null, attn_norm: null, mlp: null, mlp_norm: null"
    spec = _spec(
        ws,
        f"  kinds: full if i else none\n"
        f"  variants: {{full: {{}}, none: {{blocks: {{{dropped}}}, wiring: []}}}}",
    )
    assert spec.kinds["none"].wiring == ()
    assert ws.build(spec).layers[0].code.split("\n")[-2].strip() == "return x"


@pytest.mark.parametrize(
    ("layers", "message"),
    [
        (
            "  kinds: [full, slding, full]\n  variants: {full: {}, sliding: {}}",
            "conf/my.yaml:7: layers.kinds: 'slding' has no entry in layers.variants. Did you mean "
            "'sliding'?",
        ),
        ("  kinds: [full]\n  variants: {full: {}}", "names 1 layers, but layers.count is 3"),
        ("  variants: {a: {}, b: {}}", "layers.kinds: needed: it says which of the variants count"),
        ("  kinds: a + b\n  variants: {a: {}, b: {}}", "cannot compute with 'a' and 'b'"),
        ("  kinds: i + 1\n  variants: {a: {}}", "'1' has no entry in layers.variants"),
        ("  kinds: a if j else b\n  variants: {a: {}, b: {}}", "unknown name 'j' in 'a if j else"),
        ("  kinds: a if 1 / i else a\n  variants: {a: {}}", "cannot be computed: division by zero"),
        ("  kinds: a[0]\n  variants: {a: {}}", "'a[0]': only a list has items, by their number"),
        ("  kinds: a[0:1]\n  variants: {a: {}}", "indexing ('[...]') is not allowed"),
        (
            '  kinds: "a if ${hf:moe}[i] else a"\n  variants: {a: {}}',
            "layers.kinds: '[0, 2][i]': there is no item 2 in a list of 2 (in layer 2 of 3)",
        ),
        (
            '  kinds: "a if ${hf:moe}[i - 1] else a"\n  variants: {a: {}}',
            "there is no item -1 in a list of 2 (in layer 0 of 3)",
        ),
        ("  kinds: open(a)\n  variants: {a: {}}", "unknown function 'open'"),
        ("  kinds: 3\n  variants: {a: {}}", "layers.kinds: must be a list or a rule (got 3)"),
        (
            "  kinds: {x: 1}\n  variants: {a: {}}",
            "layers.kinds.x: must be a list or a rule (got",
        ),
        ("  kinds: [[a], a, a]\n  variants: {a: {}}", "'['a']' has no entry in layers.variants"),
        ("  kinds: a\n  variants: [a]", "layers.variants: must be a mapping (got ['a'])"),
        ("  kinds: a\n  variants: {a: 3}", "layers.variants.a: must be a mapping (got 3)"),
        ("  kinds: a\n  variants: {a: {block: {}}}", "unknown field 'block' of Variant. Did you"),
        (
            "  kinds: a\n  variants: {a: {blocks: {mpl: {size: 3}}}}",
            "conf/my.yaml:8: layers.variants.a.blocks.mpl: needs `block:`, one of Embed, Mix, Feed,"
            " Head, RMSNorm, LayerNorm. Did you mean 'mlp'?",
        ),
        (
            "  kinds: a\n  variants: {a: {blocks: {mpl: null}}}",
            "layers.variants.a.blocks.mpl: null drops a shared block, and there is none by it. Did "
            "you mean 'mlp'?",
        ),
        (
            "  kinds: a\n  variants: {a: {blocks: {mlp: {size: x}}}}",
            "conf/my.yaml:8: layers.variants.a.blocks.mlp.size: input should be a valid integer",
        ),
    ],
)
def test_what_is_wrong_with_kinds(ws: Workspace, layers: str, message: str) -> None:
    with pytest.raises(SpecError) as caught:
        _spec(ws, layers)
    assert message in str(caught.value)


AXES = """\
  kinds:
    attention: ${hf:layer_types}
    feed: wide if i in ${hf:moe} else narrow
  variants:
    full: {}
    sliding: {blocks: {attn: {window: 4}, mlp: {activation: relu}}}
    wide: {blocks: {mlp: {size: 24, activation: silu}}}
    narrow: {}
"""


def test_kinds_along_several_axes(ws: Workspace) -> None:
    spec = _spec(ws, AXES.replace("i in ${hf:moe}", "i < 2"))
    assert spec.layer_kinds == ("full+wide", "sliding+wide", "full+narrow")
    assert list(spec.kinds) == ["full+wide", "sliding+wide", "full+narrow"]
    assert spec.kinds["sliding+wide"].variants == ("sliding", "wide")
    both = spec.kinds["sliding+wide"].blocks
    assert (both["attn"].window, both["mlp"].size) == (4, 24)
    assert both["mlp"].activation == "silu"  # the later axis prevails
    layers = ws.build(spec).layers
    assert [type(layer).__name__ for layer in layers] == [f"Layer_{k}" for k in spec.layer_kinds]


def test_the_order_of_the_axes_decides(ws: Workspace) -> None:
    swapped = AXES.replace("    attention: ${hf:layer_types}\n", "").replace(
        "narrow\n  variants", "narrow\n    attention: ${hf:layer_types}\n  variants"
    )
    spec = _spec(ws, swapped.replace("i in ${hf:moe}", "i < 2"))
    assert spec.kinds["wide+sliding"].blocks["mlp"].activation == "relu"


def test_a_child_replaces_or_drops_one_axis(ws: Workspace) -> None:
    _spec(ws, AXES)
    ws.write("parent", (ws.root / "conf" / "my.yaml").read_text())
    child = "defaults: [parent]\nlayers: {kinds: {feed: narrow}}"
    assert ws.spec(child, CONFIG).layer_kinds == ("full+narrow", "sliding+narrow", "full+narrow")
    child = "defaults: [parent]\nlayers: {kinds: {feed: null}}"
    assert ws.spec(child, CONFIG).layer_kinds == ("full", "sliding", "full")
    child = "defaults: [parent]\nlayers: {kinds: wide}"
    assert ws.spec(child, CONFIG).layer_kinds == ("wide",) * 3
    spec = ws.spec("defaults: [parent]", CONFIG, ["conf.layers.kinds.feed=narrow"])
    assert spec.layer_kinds == ("full+narrow", "sliding+narrow", "full+narrow")


def test_a_block_that_one_axis_drops_and_another_adds(ws: Workspace) -> None:
    spec = _spec(
        ws,
        """\
  kinds: {a: bare, b: fed}
  variants:
    bare: {blocks: {mlp: null}}
    fed: {blocks: {mlp: {block: Feed, size: 3}}}
""",
    )
    assert spec.kinds["bare+fed"].blocks["mlp"].size == 3


def test_wiring_of_one_axis(ws: Workspace) -> None:
    own = "[x = mlp(mlp_norm(x + attn(attn_norm(x))))]"
    spec = _spec(ws, AXES.replace("narrow: {}", f"narrow: {{wiring: {own}}}"))
    assert [len(spec.kinds[kind].wiring) for kind in spec.layer_kinds] == [2, 1, 2]
    ws.build(spec)
    wrong = _spec(
        ws, AXES.replace("narrow: {}", f"narrow: {{wiring: {own}}}".replace("mlp(", "m("))
    )
    with pytest.raises(WiringError, match=r"^conf/my.yaml:14: unknown block or function 'm'"):
        ws.build(wrong)


def test_two_axes_may_give_the_same_wiring(ws: Workspace) -> None:
    own = "{wiring: [x = mlp(mlp_norm(x + attn(attn_norm(x))))]}"
    text = AXES.replace("full: {}", f"full: {own}").replace("narrow: {}", f"narrow: {own}")
    spec = _spec(ws, text.replace("wide if i in ${hf:moe} else narrow", "narrow"))
    assert [len(spec.kinds[kind].wiring) for kind in spec.layer_kinds] == [1, 1, 1]


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (
            "attention: ${hf:layer_types}",
            "attention: [full]",
            "8: layers.kinds.attention: names 1 la",
        ),
        ("else narrow", "else narow", "conf/my.yaml:9: layers.kinds.feed: unknown name 'narow' in"),
        (
            "wide if i in ${hf:moe} else narrow",
            "sliding",
            "my.yaml:9: layers.kinds.feed: 'sliding' is a kind of the axis 'attention' already",
        ),
        (
            "    full: {}\n    sliding: {",
            "    full: {wiring: [x = x + attn(x)]}\n    sliding: {wiring: [x = x + attn(x)], ",
            "my.yaml:14: layers.variants.narrow.wiring: what is 'sliding' and 'narrow' "
            "would have two wirings. Give one axis the wiring",
        ),
        (
            "attention: ${hf:layer_types}",
            "attention: {a: 1}",
            "must be a list or a rule (got {",
        ),
        ("attention: ${hf:layer_types}", "attention: ${hf:absent}", "needs 'absent'"),
    ],
)
def test_what_is_wrong_with_axes(ws: Workspace, old: str, new: str, message: str) -> None:
    text = AXES.replace("narrow: {}", "narrow: {wiring: [x = x + mlp(mlp_norm(x))]}")
    with pytest.raises(SpecError) as caught:
        _spec(ws, text.replace(old, new))
    assert message in str(caught.value)


def test_a_name_that_reads_like_a_combination(ws: Workspace) -> None:
    with pytest.raises(SpecError, match="'a\\+b': a name with '\\+' would read like a combination"):
        _spec(ws, "  kinds: {x: [a+b, a+b, a+b], y: c}\n  variants: {a+b: {}, c: {}}")


@pytest.mark.parametrize("count", ["'2'", "2.0", "true", "0", "-1", "null", str(10**9), "[2]"])
def test_a_count_that_is_none(ws: Workspace, count: str) -> None:
    with pytest.raises(SpecError, match=r"^conf/my.yaml:6: layers.count: "):
        ws.base(("count: 2", f"count: {count}"))


def test_a_kind_named_as_a_keyword_is_quoted(ws: Workspace) -> None:
    with pytest.raises(SpecError, match=r"'global' is a word of .* put it in quotes"):
        ws.spec(_rule("global if i else local"))
    assert ws.spec(_rule("'global' if i else local")).layer_kinds == ("local", "global")


def _rule(rule: str) -> str:
    return f"""\
defaults: [base, _self_]
layers: {{kinds: "{rule}", variants: {{global: {{}}, local: {{}}}}}}
"""


def test_a_shared_block_that_every_layer_drops_needs_nothing(ws: Workspace) -> None:
    text = """\
defaults: [base, _self_]
layers:
  kinds: "plain if i < ${hf:first,0} else bare"
  blocks: {mlp: {size: "${hf:absent}"}}
  variants:
    plain: {}
    bare: {blocks: {mlp: null, mlp_norm: null}, wiring: [x = x + attn(attn_norm(x))]}
"""
    assert set(ws.spec(text, {"a": 1}).kinds["bare"].blocks) == {"attn_norm", "attn"}
    with pytest.raises(SpecError, match="needs 'absent'"):
        ws.spec(text, {"first": 1})
