"""Fields with a value for each layer: what layers then are, and what is refused."""

from __future__ import annotations

import pytest
from toy_confs import Workspace

from assembler.errors import SpecError
from assembler.model.spec import ModelSpec

CONFIG = {"widths": [16, 24, 16, 24], "windows": [4, None, 4, 4], "eps": [1e-3, 1e-4]}
MLP = "mlp: {block: Feed, size: 16}"
ATTN = "attn: {block: Mix, heads: 2}"


def _spec(ws: Workspace, *changes: tuple[str, str], count: int = 4) -> ModelSpec:
    return ws.base(("count: 2", f"count: {count}"), *changes, config=CONFIG)


def _sizes(spec: ModelSpec) -> list[int]:
    return [spec.kinds[kind].blocks["mlp"].size for kind in spec.layer_kinds]


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        ("'${hf:widths}'", [16, 24, 16, 24]),
        ("[8, 9, 10, 11, 12]", [8, 9, 10, 11]),
        ("'8 * (i + 1)'", [8, 16, 24, 32]),
        ("'${hf:widths}[i] + 1 if i < 2 else 30'", [17, 25, 30, 30]),
        ("'7'", [7, 7, 7, 7]),
    ],
)
def test_a_list_or_a_rule(ws: Workspace, size: str, expected: list[int]) -> None:
    spec = _spec(ws, (MLP, f"mlp: {{block: Feed, size: {{per_layer: {size}}}}}"))
    assert _sizes(spec) == expected
    assert len(spec.kinds) == len(set(expected))


def test_layers_that_are_alike_are_of_one_kind(ws: Workspace) -> None:
    mlp = "mlp: {block: Feed, size: {per_layer: '${hf:widths}'}}"
    attn = "attn: {block: Mix, heads: 2, window: {per_layer: '${hf:windows}'}}"
    spec = _spec(ws, (MLP, mlp), (ATTN, attn))
    assert spec.layer_kinds == (
        "layer+layer_0",
        "layer+layer_1",
        "layer+layer_0",
        "layer+layer_3",
    )
    windows = [spec.kinds[kind].blocks["attn"].window for kind in spec.layer_kinds]
    assert windows == [4, None, 4, 4]
    model = ws.build(spec)
    assert model.layers[0].graph is not model.layers[1].graph


def test_variants_are_laid_over_the_values(ws: Workspace) -> None:
    mlp = "mlp: {block: Feed, size: {per_layer: '${hf:widths}'}}"
    kinds = (
        "count: 4\n  kinds: 'narrow if i < 2 else own'\n"
        "  variants: {own: {}, narrow: {blocks: {mlp: {size: 5}}}}"
    )
    spec = _spec(ws, (MLP, mlp), ("count: 4", kinds))
    assert _sizes(spec) == [5, 5, 16, 24]
    assert spec.layer_kinds == ("narrow+layer_0", "narrow+layer_0", "own+layer_2", "own+layer_3")
    assert spec.kinds["own+layer_3"].variants == ("own",)


def test_inside_a_nested_block(ws: Workspace) -> None:
    attn = "attn: {block: Mix, heads: 2, norm: {block: RMSNorm, eps: {per_layer: '${hf:eps}'}}}"
    spec = _spec(ws, (ATTN, attn), count=2)
    assert [spec.kinds[k].blocks["attn"].norm.eps for k in spec.layer_kinds] == [1e-3, 1e-4]


@pytest.mark.parametrize(
    ("size", "message"),
    [
        ("[8, 9]", "layers.blocks.mlp.size: per_layer has 2 values, 4 are wanted, one for each "),
        ("3", "size: per_layer takes a list or an expression in i (got 3) (in layer 0 of 4)"),
        ("'8 * layer'", "size: unknown name 'layer': the only one is the layer's index, i (in lay"),
        (
            "'3 if i < 1 else None'",
            "layers.blocks.mlp.size: input should be a valid integer (got nu",
        ),
        ("'${hf:absent}'", "needs 'absent', which config.json does not have."),
    ],
)
def test_what_is_refused(ws: Workspace, size: str, message: str) -> None:
    with pytest.raises(SpecError) as caught:
        _spec(ws, (MLP, f"mlp: {{block: Feed, size: {{per_layer: {size}}}}}"))
    (line,) = str(caught.value).splitlines()
    assert line.startswith("conf/my.yaml:11: ") and message in line


def test_outside_the_layers_there_is_no_layer(ws: Workspace) -> None:
    head = "lm_head: {block: Head, tied: {per_layer: [true, true]}}"
    with pytest.raises(SpecError, match=r"lm_head\.tied: .*per_layer"):
        _spec(ws, ("lm_head: {block: Head}", head))


def test_a_misspelt_per_layer_is_told(ws: Workspace) -> None:
    with pytest.raises(SpecError) as caught:
        _spec(ws, (MLP, "mlp: {block: Feed, size: {per_layers: [8, 9, 8, 9]}}"))
    assert str(caught.value).endswith(
        "(got {'per_layers': [8, 9, 8, 9]}) Did you mean 'per_layer'?"
    )
    with pytest.raises(SpecError) as caught:
        _spec(ws, (MLP, "mlp: {block: Feed, size: {window: 3}}"))
    assert "Did you mean" not in str(caught.value)
