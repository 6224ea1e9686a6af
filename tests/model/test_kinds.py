"""Layers that differ: `kinds` gives each layer's kind, `variants` what a kind changes."""

from __future__ import annotations

from typing import Any

import pytest
from toy_confs import Workspace

from assembler.errors import SpecError
from assembler.model.spec import ModelSpec

CONFIG = {"layer_types": ["full", "sliding", "full"], "flags": [1, 0, 1], "moe": [0, 2]}


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
        ("  variants: {a: {}, b: {}}", "layers.kinds: needed: it says which variant each layer is"),
        ("  kinds: a + b\n  variants: {a: {}, b: {}}", "cannot compute with 'a' and 'b'"),
        ("  kinds: i + 1\n  variants: {a: {}}", "'1' has no entry in layers.variants"),
        ("  kinds: a if j else b\n  variants: {a: {}, b: {}}", "unknown name 'j' in 'a if j else"),
        ("  kinds: a if 1 / i else a\n  variants: {a: {}}", "cannot be computed: division by zero"),
        ("  kinds: a[0]\n  variants: {a: {}}", "indexing ('[...]') is not allowed"),
        ("  kinds: open(a)\n  variants: {a: {}}", "unknown function 'open'"),
        ("  kinds: 3\n  variants: {a: {}}", "layers.kinds: must be a list (got 3)"),
        ("  kinds: {a: 1}\n  variants: {a: {}}", "layers.kinds: must be a list (got {'a': 1})"),
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


@pytest.mark.parametrize("count", ["'2'", "2.0", "true", "0", "-1", "null", str(10**9), "[2]"])
def test_a_count_that_is_none(ws: Workspace, count: str) -> None:
    with pytest.raises(SpecError, match=r"^conf/my.yaml:6: layers.count: "):
        ws.base(("count: 2", f"count: {count}"))
