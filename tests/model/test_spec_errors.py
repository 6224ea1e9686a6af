"""What is refused in a conf's fields and blocks, and how the messages help."""

from __future__ import annotations

import pytest
from toy_confs import Workspace, changed

from assembler.errors import SpecError
from assembler.model.compose import load_spec
from assembler.model.conf_files import PACKAGE_ROOT

MLP = "mlp: {block: Feed, size: 16}"
ATTN = "attn: {block: Mix, heads: 2}"


def _refusal(ws: Workspace, *changes: tuple[str, str]) -> list[str]:
    with pytest.raises(SpecError) as caught:
        ws.base(*changes)
    return str(caught.value).splitlines()


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (
            MLP,
            "mlp: {block: Fed, size: 16}",
            "conf/my.yaml:11: layers.blocks.mlp.block: unknown block 'Fed'. Did you mean 'Feed'? "
            "Known: Embed, Mix, Feed, Head, RMSNorm, LayerNorm",
        ),
        (
            MLP,
            "mlp: {block: Feed, siez: 16, size: 1}",
            "conf/my.yaml:11: layers.blocks.mlp.siez: unknown field 'siez' of Feed. Did you mean "
            "'size'? Known: size, activation",
        ),
        (
            MLP,
            "mlp: {block: Feed, size: 16, activation: sillu}",
            "conf/my.yaml:11: layers.blocks.mlp.activation: 'sillu' is none of 'silu' or 'relu'. "
            "Did you mean 'silu'?",
        ),
        (
            MLP,
            "mlp: {size: 16}",
            "conf/my.yaml:11: layers.blocks.mlp: needs `block:`, one of Embed, Mix, Feed, Head, "
            "RMSNorm, LayerNorm.",
        ),
        (MLP, "mlp: {block: [Feed]}", "layers.blocks.mlp.block: unknown block '['Feed']'."),
        (MLP, "mlp: Feed", "layers.blocks.mlp: must be a mapping (got 'Feed')"),
        (ATTN, "attn: {block: Mix}", "attn.heads: required, but not given (how many heads there"),
        (ATTN, "attn: {block: Mix, heads: 0}", "attn.heads: input should be greater than 0 (got 0"),
        (
            ATTN,
            "attn: {block: Mix, heads: null}",
            "heads: input should be a valid integer (got nul",
        ),
        (
            ATTN,
            "attn: {block: Mix, heads: [2]}",
            "heads: input should be a valid integer (got [2])",
        ),
        (
            ATTN,
            "attn: {block: Mix, heads: 2, norm: {block: RMSNrm}}",
            "layers.blocks.attn.norm: unknown block 'RMSNrm' here. Did you mean 'RMSNorm'? Known: "
            "RMSNorm, LayerNorm",
        ),
        (
            ATTN,
            "attn: {block: Mix, heads: 2, norm: {block: Feed, size: 3}}",
            "layers.blocks.attn.norm: unknown block 'Feed' here. Known: RMSNorm, LayerNorm",
        ),
        (
            ATTN,
            "attn: {block: Mix, heads: 2, norm: {eps: 3}}",
            "norm: a nested block needs `block:",
        ),
        (
            ATTN,
            "attn: {block: Mix, heads: 2, norm: 3}",
            "layers.blocks.attn.norm: must be a mapping",
        ),
        (
            ATTN,
            "attn: {block: Mix, heads: 2, norm: {block: LayerNorm, esp: 3}}",
            "layers.blocks.attn.norm.esp: unknown field 'esp' of LayerNorm. Did you mean 'eps'?",
        ),
        (
            ATTN,
            "attn: {block: Mix, heads: 2, table: {theta: 1, tpye: a}}",
            "layers.blocks.attn.table.tpye: unknown field 'tpye' of Table. Did you mean 'type'?",
        ),
        (
            ATTN,
            "attn: {block: Mix, heads: 2, table: 3}",
            "layers.blocks.attn.table: must be a mapp",
        ),
        ("hidden_size: 8", "hidden_size: 0", "hidden_size: input should be greater than 0 (got 0)"),
        (
            "hidden_size: 8",
            "hiden_size: 8",
            "hiden_size: no field of a model. Did you mean 'hidden",
        ),
        ("hidden_size: 8\n", "", "hidden_size: required, but not given (width of the residual str"),
        (
            "hidden_size: 8",
            "hidden_size: 8\nmax_len: 3",
            "max_len: no field of a model. Did you mea",
        ),
        ("hidden_size: 8", "hidden_size: 8\nmatches: 3", "matches: must be a mapping (got 3)"),
        ("weight_map: toy", "weight_map: [a]", "weight_map: must be text (got ['a'])"),
        ("  wiring:", "  wirng:", "layers.wirng: unknown field 'wirng' of Layers. Did you mean"),
        ("- x = x + attn(attn_norm(x))", "- x: 3", "layers.wiring[0]: must be text (got {'x': 3})"),
        (
            "count: 2",
            "count: 2\n  streams: []",
            "layers.streams: tuple should have at least 1 item",
        ),
        ("count: 2", "count: 2\n  streams: x", "layers.streams: must be a list (got 'x')"),
        ("count: 2", "count: 2\n  streams: [x, x]", "layers.streams: 'x' is named twice"),
        (
            "count: 2",
            "count: 2\n  streams: [mlp]",
            "'mlp' is a stream, so a block cannot be called",
        ),
        ("lm_head: {block: Head}", "forward: {block: Head}", "means something else on a torch mod"),
        ("lm_head: {block: Head}", "spec: {block: Head}", "means something else on a torch module"),
        ("lm_head: {block: Head}", "tokens: {block: Head}", "'tokens' is an input of the model"),
        (MLP, "i: {block: Feed, size: 1}", "'i' is a number in every equation: use another name"),
        (MLP, "sqrt: {block: Feed, size: 1}", "'sqrt' is a function in every equation"),
        (MLP, "scale_0: {block: Feed, size: 1}", "means something else on a torch module"),
        (MLP, "class: {block: Feed, size: 1}", "'class' is a word of the equations' syntax"),
        (MLP, "my-mlp: {block: Feed, size: 1}", "layers.blocks.my-mlp: 'my-mlp' is no name"),
    ],
)
def test_a_wrong_field(ws: Workspace, old: str, new: str, message: str) -> None:
    assert any(message in line for line in _refusal(ws, (old, new)))


def test_several_findings_are_one_error(ws: Workspace) -> None:
    lines = _refusal(
        ws,
        (MLP, "mlp: {block: Feed, siez: 16}"),
        (ATTN, "attn: {block: Mx, heads: 2}"),
        ("embed: {block: Embed}", "embed: {block: Embed, scale: 3}"),
    )
    assert [line.split(": ")[:2] for line in lines] == [
        ["conf/my.yaml:4", "embed.scale"],
        ["conf/my.yaml:9", "layers.blocks.attn.block"],
        ["conf/my.yaml:11", "layers.blocks.mlp.size"],
        ["conf/my.yaml:11", "layers.blocks.mlp.siez"],
    ]


def test_long_values_are_cut(ws: Workspace) -> None:
    (line,) = _refusal(ws, ("hidden_size: 8", f"hidden_size: {'x' * 1000}"))
    assert line.endswith("xxx...)") and len(line) < 300


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("conf.layers.blocks.mlp.activation=silo", "Did you mean 'silu'?"),
        ("conf.layers.blocks.mlp.activation=prelu", "'prelu' owns learned tensors"),
        ("conf.layers.blocks.attn.qk_norm={block: QKNorm, over: heads}", "Did you mean 'head'?"),
        ("conf.layers.blocks.attn.qk_norm={block: RMSNorn}", "Did you mean 'RMSNorm'?"),
        ("conf.layers.blocks.attn.qk_norm_over=head", "Did you mean 'qk_norm.over'?"),
        ("conf.layers.blocks.attn.rope_style=half", "Did you mean 'rope.style'?"),
        (
            "conf.layers.blocks.attn.block=RopeAtn",
            "unknown block 'RopeAtn'. Did you mean 'RopeAttn",
        ),
    ],
)
def test_shipped_blocks(override: str, message: str) -> None:
    error = _llama_refusal(override)
    assert error.startswith("command line: layers.blocks.")
    assert message in error


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("type=linear", "rope type 'linear' needs factor"),
        (
            "factor=2",
            "rope type 'default' does not use factor; it uses only theta, partial and style",
        ),
    ],
)
def test_settings_of_file_and_command_line_that_misfit(setting: str, message: str) -> None:
    place, _, rest = _llama_refusal(f"conf.layers.blocks.attn.rope.{setting}").partition(": ")
    assert place.endswith("conf/llama.yaml:21 (changed on the command line)")
    assert rest == f"layers.blocks.attn.rope: {message}"


def _llama_refusal(override: str) -> str:
    config = {
        "hidden_size": 8,
        "vocab_size": 9,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 16,
        "rms_norm_eps": 1e-5,
        "hidden_act": "silu",
        "max_position_embeddings": 32,
    }
    with pytest.raises(SpecError) as caught:
        load_spec("llama", config, [override], roots=[PACKAGE_ROOT])
    return str(caught.value)


@pytest.mark.parametrize(
    ("activation", "message"),
    [
        ("slu", "layers.blocks.mlp.activation: 'slu' is none of "),
        ("xielu", "layers.blocks.mlp.activation: activation 'xielu' owns learned tensors"),
        ("3", "layers.blocks.mlp.activation: 3 is none of "),
        (
            "{block: XIELU, bias: 1}",
            "layers.blocks.mlp.activation.bias: unknown field 'bias' of XI",
        ),
        ("{block: RMSNorm}", "layers.blocks.mlp.activation.block: 'RMSNorm' is none of 'XIELU'"),
    ],
)
def test_a_field_that_takes_a_name_or_a_block(ws: Workspace, activation: str, message: str) -> None:
    mlp = f"mlp: {{block: MLP, intermediate_size: 4, activation: {activation}}}"
    ws.write(
        "my",
        changed(
            ("mlp: {block: Feed, size: 16}", mlp),
            ("block: Mix, heads: 2", "block: RopeAttn, num_heads: 2"),
            ("{block: Embed}", "{block: Embedding}"),
            ("lm_head: {block: Head}", "lm_head: {block: LMHead}"),
        ),
    )
    with pytest.raises(SpecError) as caught:
        load_spec("my", roots=[ws.root])
    assert str(caught.value).startswith(f"conf/my.yaml:11: {message}")
    assert len(str(caught.value).splitlines()) == 1
