"""`config_defaults`: what the fields mean that config.json leaves out."""

from __future__ import annotations

from typing import Any

import pytest
from toy_confs import Workspace

from assembler.errors import SpecError
from assembler.model.config_fields import ConfigFields, Missing

PARENT = """\
defaults: [base, _self_]
config_defaults: {heads: 4, window: 3, nested: {a: 5}}
layers: {blocks: {attn: {heads: "${hf:heads|n_head}", window: "${hf:window}"}}}
"""


def test_a_present_field_wins_under_any_of_its_names() -> None:
    defaults = {"hidden_size": 5, "none": 6, "b": 7}
    fields = ConfigFields({"n_embd": 3, "none": None}, defaults=defaults)
    assert fields.get("hidden_size|n_embd") == 3
    assert fields.get("hidden_size") == 5 and fields.get("b") == 7
    assert fields.get("none") is None
    assert isinstance(fields.get("c"), Missing)
    assert "b" in fields and set(fields) == {"n_embd", "none", "hidden_size", "b"}


def _attn(ws: Workspace, text: str, config: dict[str, Any], overrides: tuple[str, ...] = ()) -> Any:
    ws.write("parent", PARENT)
    return ws.spec(text, config, overrides).kinds["layer"].blocks["attn"]


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({"other": 1}, (4, 3)),
        ({"n_head": 2}, (2, 3)),
        ({"heads": 8, "window": None}, (8, None)),
    ],
)
def test_what_the_config_lacks(ws: Workspace, config: dict, expected: tuple) -> None:
    attn = _attn(ws, "defaults: [parent, _self_]", config)
    assert (attn.heads, attn.window) == expected


def test_a_child_changes_single_defaults(ws: Workspace) -> None:
    attn = _attn(ws, "defaults: [parent, _self_]\nconfig_defaults: {window: 9}", {"other": 1})
    assert (attn.heads, attn.window) == (4, 9)


def test_a_default_in_the_interpolation_comes_last(ws: Workspace) -> None:
    text = 'defaults: [parent, _self_]\nlayers: {blocks: {attn: {window: "${hf:window,6}"}}}'
    assert _attn(ws, text, {"other": 1}).window == 3
    assert _attn(ws, text, {"window": None}).window == 6


def test_calculations_and_the_command_line_see_them(ws: Workspace) -> None:
    text = """\
defaults: [parent, _self_]
layers: {blocks: {attn: {window: "${calc:'window + ${hf:nested.a}'}"}}}
"""
    assert _attn(ws, text, {"other": 1}).window == 8
    assert _attn(ws, text, {"other": 1}, ("conf.config_defaults.window=10",)).window == 15


def test_only_plain_values(ws: Workspace) -> None:
    text = 'defaults: [base, _self_]\nconfig_defaults: {a: "${hf:b}", c: {d: "${calc:\'1\'}"}}'
    with pytest.raises(SpecError) as caught:
        ws.spec(text, {"b": 1})
    first, second = str(caught.value).splitlines()
    assert "my.yaml:2: config_defaults.a: takes a plain value" in first
    assert "config_defaults.c.d" in second
    with pytest.raises(SpecError, match="takes a mapping of fields and values"):
        ws.spec("defaults: [base, _self_]\nconfig_defaults: [1]", {"b": 1})
