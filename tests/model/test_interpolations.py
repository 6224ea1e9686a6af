"""`${hf:}`, `${calc:}` and OmegaConf's own interpolations, resolved against a config.json."""

from __future__ import annotations

from typing import Any

import pytest
from toy_confs import Workspace

from assembler.errors import SpecError
from assembler.model.config_fields import ConfigFields, Missing, missing_fields


def _value(ws: Workspace, text: str, config: dict[str, Any] | None = None) -> Any:
    """What `text` gives as the value of a field that takes anything a YAML can hold."""
    spec = ws.base(("heads: 2", f"heads: 2, window: {text}"), config=config)
    return spec.kinds["layer"].blocks["attn"].window


def _refusal(ws: Workspace, text: str, config: dict[str, Any] | None = None) -> str:
    with pytest.raises(SpecError) as caught:
        _value(ws, text, config)
    return str(caught.value)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("${hf:a}", 1),
        ("${hf:a,7}", 1),
        ("${hf:absent,7}", 7),
        ("${hf:absent,null}", None),
        ("${hf:none}", None),
        ("${hf:none,7}", 7),
        ("${hf:nested.b}", 2),
        ("${hf:nested.absent,7}", 7),
        ("${hf:a.b,7}", 7),
        ("${hf:absent|a}", 1),
        ("${hf:none|a}", 1),
        ("${hf:absent|none,7}", 7),
        ("${hf:absent|nested.b|a}", 2),
        ("${hf:absent,${hf:a}}", 1),
        ("${hf:absent,${hf:none,${hf:nested.b}}}", 2),
        ("${hf:a,${hf:absent}}", 1),
        ("${hf:a,${calc:'1 // absent'}}", 1),
        ("${hf:absent,${calc:'a + 4 * nested'}}", None),
    ],
)
def test_fields_of_the_config(ws: Workspace, text: str, expected: Any) -> None:
    config = {"a": 1, "none": None, "nested": {"b": 2}}
    if expected is None and "calc" in text:
        assert "cannot compute with 4 and {'b': 2}" in _refusal(ws, f'"{text}"', config)
    else:
        assert _value(ws, f'"{text}"', config) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("h // n", 10),
        ("h / n / 2", 5),
        ("-h + 50 - +n", 6),
        ("h % 6", 4),
        ("n ** 2", 16),
        ("sqrt(n) * abs(-n)", 8),
        ("min(h, n, 9) + max(1, 2)", 6),
        ("round(2.6) + floor(2.6) + ceil(2.1) + int(2.9)", 10),
        ("len(kinds)", 2),
        ("1 if n == 4 else 2", 1),
        ("1 if not flag else 2", 2),
        ("1 if flag and h > 30 else 2", 1),
        ("1 if 3 < n <= 4 and 'full' in kinds else 2", 1),
        ("1 if none is None or absent else 2", 1),
        ("1 if name == 'x y' else 2", 1),
        ("1 if n in [4, 5] and n not in (1, 2) else 2", 1),
        ("len(kinds + ['a'])", 3),
        ("${hf:h} // 2", 20),
        ("1 if ${hf:flag} else 2", 1),
        ("absent if not flag else 3", 3),
    ],
)
def test_arithmetic(ws: Workspace, text: str, expected: int) -> None:
    config = {
        "h": 40,
        "n": 4,
        "flag": True,
        "none": None,
        "kinds": ["full", "sliding"],
        "name": "x y",
    }
    quoted = text.replace("'", "\\\\'")
    assert _value(ws, f"\"${{calc:'{quoted}'}}\"", config) == expected


def test_text_config_is_read_first() -> None:
    fields = ConfigFields({"a": 1, "b": 2, "text_config": {"a": 3, "c": None}})
    assert [fields.get(name) for name in ("a", "b", "c", "text_config.a")] == [3, 2, None, 3]
    assert "c" in fields and "d" not in fields
    assert {"a", "b", "c"} <= set(fields)


def test_what_is_absent_is_reported_where_it_is_needed(ws: Workspace) -> None:
    message = _refusal(ws, '"${hf:num_heds}"', {"num_heads": 2})
    assert message == (
        "conf/my.yaml:9: layers.blocks.attn.window: needs 'num_heds', which config.json does not "
        "have. Did you mean 'num_heads'?"
    )


@pytest.mark.parametrize(
    "text",
    [
        "${hf:absent}",
        "${hf:absent,${hf:absent}}",
        "${calc:'a + absent'}",
        "${calc:'a / (absent - 1)'}",
        "${calc:'1 + ${hf:absent}'}",
        "${calc:'a in absent'}",
    ],
)
def test_a_needed_field_that_is_absent(ws: Workspace, text: str) -> None:
    assert "needs 'absent', which config.json does not have" in _refusal(ws, f'"{text}"', {"a": 1})


def test_several_absent_fields_are_one_error(ws: Workspace) -> None:
    text = (
        "defaults: [base]\nhidden_size: ${hf:a}\nlayers: {count: '${hf:b}'}\n"
        "wiring: ['x = layers(embed(tokens))', 'logits = lm_head(norm(x)) / ${hf:c}']"
    )
    with pytest.raises(SpecError) as caught:
        ws.spec(text, {"x": 1})
    assert [line.split(",")[0] for line in str(caught.value).splitlines()] == [
        "conf/my.yaml:2: hidden_size: needs 'a'",
        "conf/my.yaml:3: layers.count: needs 'b'",
        "conf/my.yaml:4: wiring[1]: needs 'c'",
    ]


def test_a_variant_no_layer_is_needs_nothing(ws: Workspace) -> None:
    variants = "variants: {a: {}, b: {blocks: {attn: {window: '${hf:absent}'}}}}"
    spec = ws.base(("count: 2", f"count: 2\n  kinds: a\n  {variants}"), config={"x": 1})
    assert list(spec.kinds) == ["a"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("${hf:}", "${hf:...} takes the name of a field of config.json"),
        ("${hf:a,b,c}", "${hf:a,...} takes one default, not 2"),
        ("${calc:}", "${calc:...} takes one expression, in quotes"),
        ("${calc:max(a, b)}", "no interpolation that can be read"),
        ("${calc:'1', 2}", "${calc:...} takes one expression, in quotes"),
        ("${calc:'1 / 0'}", "'1 / 0' cannot be computed: division by zero"),
        ("${calc:'1 +'}", "'1 +' is not an expression: invalid syntax"),
        ("${calc:'1if a else 2'}", "is not an expression: invalid decimal literal"),
        ("${calc:'sqt(4)'}", "unknown function 'sqt'. Did you mean 'sqrt'?"),
        ("${calc:'round(1.5, 1)'}", "cannot be computed"),
        ("${calc:'len(x=1)'}", "len(...) takes no arguments by name: 'len(x=1)'"),
        ("${calc:'a.real'}", "attribute access ('.') is not allowed in an expression: 'a.real'"),
        ("${calc:'(-1) ** 0.5'}", "'(-1) ** 0.5' is no real number"),
        ("${calc:'10 ** 1000'}", "an exponent above 256 is too large"),
        ("${calc:'(2 ** 256) ** 256'}", "the numbers grow too large"),
        ("${calc:'exp(1000)'}", "'exp(1000)' cannot be computed: math range error"),
        ("${hf:a", "'${hf:a' is no interpolation that can be read: missing BRACE_CLOSE"),
        ("${hff:a}", "no interpolation ${hff:...}. Did you mean 'hf'? There are ${hf:...}"),
        ("${a}", "Interpolation key 'a' not found (a field of config.json is ${hf:NAME}"),
        ("${conf.layers.blocks.attn.window}", "Recursive interpolation"),
        ("???", "Missing mandatory value"),
    ],
)
def test_what_cannot_be_resolved(ws: Workspace, text: str, message: str) -> None:
    error = _refusal(ws, f'"{text}"', {"a": 1})
    assert error.startswith("conf/my.yaml:9: layers.blocks.attn.window: ")
    assert message in error


def test_all_unreadable_interpolations_are_one_error(ws: Workspace) -> None:
    with pytest.raises(SpecError) as caught:
        ws.spec("defaults: [base]\nhidden_size: ${hf:a\nvocab_size: ${", {"a": 1})
    assert [line[:16] for line in str(caught.value).splitlines()] == [
        "conf/my.yaml:2: ",
        "conf/my.yaml:3: ",
    ]


def test_keys_of_the_yaml_itself(ws: Workspace) -> None:
    assert _value(ws, '"${conf.layers.count}"') == 2
    assert _value(ws, '"${.heads}"') == 2


def test_without_a_config_only_defaults_count(ws: Workspace) -> None:
    assert _value(ws, '"${hf:a,5}"', None) == 5
    text = "defaults: [base]\nhidden_size: ${hf:hidden_size}"
    with pytest.raises(SpecError, match=r"takes its sizes from a checkpoint's config.json: pass"):
        ws.spec(text)
    with pytest.raises(SpecError, match=r"config.json: this one has none. Copy it from the orig"):
        ws.spec(text, config={})


def test_marks_of_missing_fields() -> None:
    missing = Missing("a|b")
    assert missing_fields(missing) == ["a|b"]
    assert missing_fields(f"x * {missing} + {Missing('c')}") == ["a|b", "c"]
    assert missing_fields("x") == missing_fields(3) == missing_fields(None) == []


def test_two_models_are_resolved_side_by_side(ws: Workspace) -> None:
    values = [_value(ws, '"${hf:a}"', {"a": number}) for number in (1, 2, 1)]
    assert values == [1, 2, 1]
