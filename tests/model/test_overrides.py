"""`conf.key=value` on the command line: what it may reach, and what it refuses."""

from __future__ import annotations

from typing import Any

import pytest
from toy_confs import Workspace

from assembler.errors import SpecError
from assembler.model.spec import ModelSpec

CONFIG = {"rope_theta": 5.0, "hidden_size": 8, "kinds": ["a", "b", "a", "b", "a"], "four": 4}
CONF = """\
defaults: [base]
hidden_size: ${hf:hidden_size}
layers:
  count: 5
  kinds: ${hf:kinds}
  blocks: {attn: {table: "${hf_rope:}"}}
  variants:
    a: {}
    b: {blocks: {mlp: {size: 24}}}
"""


def _spec(ws: Workspace, *overrides: str) -> ModelSpec:
    return ws.spec(CONF, CONFIG, overrides)


def _block(spec: ModelSpec, name: str, kind: str = "a") -> Any:
    return spec.kinds[kind].blocks[name]


def test_fewer_layers_than_kinds(ws: Workspace) -> None:
    assert _spec(ws).layer_kinds == ("a", "b", "a", "b", "a")
    assert _spec(ws, "conf.layers.count=2").layer_kinds == ("a", "b")


@pytest.mark.parametrize(
    ("override", "read", "expected"),
    [
        ("conf.hidden_size=16", lambda s: s.hidden_size, 16),
        ("++conf.hidden_size=16", lambda s: s.hidden_size, 16),
        ("conf.max_length=99", lambda s: s.max_length, 99),
        ("+conf.max_length=99", lambda s: s.max_length, 99),
        ("conf.layers.blocks.mlp.activation=relu", lambda s: _block(s, "mlp").activation, "relu"),
        ("conf.layers.blocks.mlp.size=9", lambda s: _block(s, "mlp").size, 9),
        ("conf.layers.blocks.mlp={size: 9}", lambda s: _block(s, "mlp").size, 9),
        ("conf.layers.blocks.attn.window=7", lambda s: _block(s, "attn").window, 7),
        ("conf.layers.blocks.attn.window=null", lambda s: _block(s, "attn").window, None),
        ("conf.layers.blocks.attn.table.theta=1e6", lambda s: _block(s, "attn").table.theta, 1e6),
        ("conf.layers.blocks.attn.table.partial=0.5", lambda s: _block(s, "attn").table.theta, 5.0),
        ("conf.layers.blocks.attn.table=null", lambda s: _block(s, "attn").table, None),
        (
            "conf.layers.blocks.attn.norm={block: RMSNorm, eps: 0.5}",
            lambda s: _block(s, "attn").norm.eps,
            0.5,
        ),
        ("conf.layers.blocks.mlp_norm.block=LayerNorm", lambda s: _block(s, "mlp_norm").eps, 1e-5),
        (
            "conf.layers.blocks.attn.norm.block=LayerNorm",
            lambda s: _block(s, "attn").norm.eps,
            1e-5,
        ),
        (
            "conf.layers.blocks.mlp_norm={block: LayerNorm, eps: 0.5}",
            lambda s: _block(s, "mlp_norm").eps,
            0.5,
        ),
        ("conf.layers.variants.b.blocks.mlp.size=9", lambda s: _block(s, "mlp", "b").size, 9),
        ("conf.layers.variants.a.blocks.mlp.size=9", lambda s: _block(s, "mlp", "a").size, 9),
        ("conf.layers.variants.a.blocks.mlp.size=9", lambda s: _block(s, "mlp", "b").size, 24),
        ("conf.layers.kinds=[b,b,b,b,a]", lambda s: s.layer_kinds, tuple("bbbba")),
        ("conf.layers.kinds=a", lambda s: s.layer_kinds, tuple("aaaaa")),
        ("conf.layers.kinds.0=b", lambda s: s.layer_kinds, tuple("bbaba")),
        ('conf.layers.kinds="b if i == 4 else a"', lambda s: s.layer_kinds, tuple("aaaab")),
        (
            'conf.wiring.1="logits = softcap(lm_head(norm(x)), 3)"',
            lambda s: s.wiring[1],
            "logits = softcap(lm_head(norm(x)), 3)",
        ),
        ("conf.layers.count=${hf:four}", lambda s: s.num_layers, 4),
        ("conf.layers.count=\"${calc:'four - 1'}\"", lambda s: s.num_layers, 3),
        ("~conf.layers.blocks.attn.table", lambda s: _block(s, "attn").table, None),
        ("~conf.layers.variants.b.blocks.mlp.size", lambda s: _block(s, "mlp", "b").size, 16),
    ],
)
def test_what_an_override_reaches(ws: Workspace, override: str, read: Any, expected: Any) -> None:
    assert read(_spec(ws, override)) == expected


def test_a_new_block_needs_a_plus(ws: Workspace) -> None:
    spec = _spec(
        ws,
        "+conf.layers.blocks.post={block: RMSNorm, eps: 0.1}",
        "+conf.out_norm.block=LayerNorm",
        'conf.layers.wiring=["x = x + attn(attn_norm(x))", "x = x + mlp(post(mlp_norm(x)))"]',
        'conf.wiring.1="logits = lm_head(out_norm(norm(x)))"',
    )
    ws.build(spec)
    assert _block(spec, "post").eps == 0.1


def test_later_overrides_win(ws: Workspace) -> None:
    assert _spec(ws, "conf.hidden_size=16", "conf.hidden_size=24").hidden_size == 24


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("conf.hiden_size=3", "'conf.hiden_size=3': conf has no 'hiden_size'. Did you mean"),
        ("conf.embd.scale=3", "conf has no 'embd'. Did you mean 'embed'?"),
        ("conf.layers.cuont=3", "conf.layers has no 'cuont'. Did you mean 'count'?"),
        ("conf.layers.blocks.mpl.size=3", "conf.layers.blocks has no 'mpl'. Did you mean 'mlp'?"),
        ("conf.layers.blocks.mpl=3", "added with ++conf.layers.blocks.mpl=..."),
        ("conf.layers.variants.c.wiring=[]", "conf.layers.variants has no 'c'."),
        ("conf.layers.variants.a.blocks.mpl.size=3", "has no 'mpl'."),
        ("conf.layers.variants.a.blcks.mlp.size=3", "has no 'blcks'."),
        ("~conf.layers.blocks.attn.tabel", "has no 'tabel'. Did you mean 'table'?"),
        ("~conf.nothing.at.all", "conf has no 'nothing'."),
        ("+conf.hidden_size=3", "'+conf.hidden_size=3': it is set already; leave out the '+'"),
        ("conf.hidden_size.a=3", "conf.hidden_size is 8, which has no fields"),
        ("conf.weight_map.a=3", "conf.weight_map is 'toy', which has no fields"),
        ("conf.wiring.2=x", "conf.wiring is a list of 2: set one of them by its number from 0"),
        ("conf.wiring.a=x", "or all of it: conf.wiring=[...]"),
        ("~conf.wiring.0", "conf.wiring is a list of 2"),
        ("conf.layers.count=1,2", "is a sweep: -m runs the command for each value"),
        ("conf.layers.count=range(3)", "is a sweep: -m"),
        ("conf.checkpoint=x", "'conf.checkpoint=x': pass checkpoint=... instead"),
        ("conf.matches.model_type=x", "a conf is chosen before overrides apply; pass conf=..."),
        ("conf=llama", "'conf=llama': name a key below 'conf.'"),
        ("layers.count=3", "'layers.count=3' overrides nothing below 'conf.'"),
        ("conf@x.count=3", "'conf@x.count=3' overrides nothing below 'conf.'"),
        ("conf.layers.count=((", "'conf.layers.count=((' is not Hydra's override syntax: "),
        ("conf..count=3", "'conf..count=3' is not Hydra's override syntax: "),
    ],
)
def test_what_is_refused(ws: Workspace, override: str, message: str) -> None:
    with pytest.raises(SpecError) as caught:
        _spec(ws, override)
    assert message in str(caught.value)


def test_wrong_overrides_are_one_error(ws: Workspace) -> None:
    with pytest.raises(SpecError) as caught:
        _spec(ws, "layers.count=3", "conf.a=((", "conf.a=1,2")
    assert len(str(caught.value).splitlines()) == 3


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("conf.layers.blocks.attn.windw=3", "unknown field 'windw' of Mix. Did you mean 'window'?"),
        ("conf.layers.blocks.attn.table.thet=3", "unknown field 'thet' of Table. Did you mean"),
        ("conf.layers.count=two", "input should be a valid integer (got 'two')"),
        ("conf.layers.count=0", "input should be greater than or equal to 1 (got 0)"),
        ("conf.layers=3", "layers: must be a mapping (got 3)"),
        ("conf.embed=3", "no field of a model. A block is a mapping with `block:`, not 3"),
        ("+conf.foo=3", "no field of a model. A block is a mapping with `block:`, not 3"),
        ("conf.hidden_size=${hf:hiden_size}", "needs 'hiden_size', which config.json does not"),
    ],
)
def test_errors_in_what_was_set_blame_the_command_line(
    ws: Workspace, override: str, message: str
) -> None:
    with pytest.raises(SpecError) as caught:
        _spec(ws, override)
    assert str(caught.value).startswith("command line: ")
    assert message in str(caught.value)


def test_errors_beside_an_override_blame_the_file(ws: Workspace) -> None:
    text = CONF.replace("size: 24", "size: x")
    with pytest.raises(SpecError, match=r"^conf/my.yaml:9: layers.variants.b.blocks.mlp.size: "):
        ws.spec(text, CONFIG, ["conf.layers.count=2"])


def test_equations_of_the_command_line_are_located_there(ws: Workspace) -> None:
    spec = _spec(ws, 'conf.layers.wiring=["x = x + attn(attn_norm(x))"]')
    with pytest.raises(SpecError) as caught:
        ws.build(spec)
    assert str(caught.value).splitlines() == [
        "conf/base.yaml:10: block 'mlp_norm' is declared but no equation calls it",
        "conf/base.yaml:11: block 'mlp' is declared but no equation calls it",
        "conf/my.yaml:9: block 'mlp' is declared but no equation calls it",
    ]
    spec = _spec(ws, 'conf.layers.wiring=["x = x + atn(attn_norm(x))"]')
    with pytest.raises(SpecError, match=r"^command line: unknown block or function 'atn'"):
        ws.build(spec)
