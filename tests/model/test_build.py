"""The compiled module: its code, its parameters, and what it shares."""

from __future__ import annotations

import copy
import textwrap

import pytest
import torch
from torch import fx
from toy_confs import Workspace, changed

from assembler.blocks.context import ForwardContext
from assembler.errors import SpecError
from assembler.model.build import build_model
from assembler.model.compose import load_spec
from assembler.model.conf_files import PACKAGE_ROOT

LLAMA_70B = {
    "hidden_size": 8192,
    "vocab_size": 128256,
    "num_hidden_layers": 80,
    "num_attention_heads": 64,
    "num_key_value_heads": 8,
    "intermediate_size": 28672,
    "rms_norm_eps": 1e-5,
    "hidden_act": "silu",
    "max_position_embeddings": 131072,
    "rope_theta": 500000.0,
}


def _code(module: fx.GraphModule) -> str:
    """The generated forward without the `; x = None` that frees memory early."""
    lines = (line.split(";  ")[0] for line in module.code.strip().splitlines())
    return "\n".join(lines).strip()


def _text(code: str) -> str:
    return textwrap.dedent(code).strip()


def test_the_code_without_rewrites(ws: Workspace) -> None:
    model = ws.build(ws.base(), rewrites="none")
    assert _code(model) == _text(
        """
        def forward(self, tokens, ctx):
            embed = self.embed(tokens)
            layers = self.layers(embed, ctx)
            norm = self.norm(layers)
            lm_head = self.lm_head(norm)
            return lm_head
        """
    )
    assert _code(model.layers[0]) == _text(
        """
        def forward(self, x, ctx):
            attn_norm = self.attn_norm(x)
            attn = self.attn(attn_norm, ctx)
            x_1 = x + attn
            mlp_norm = self.mlp_norm(x_1)
            mlp = self.mlp(mlp_norm)
            x_2 = x_1 + mlp
            return x_2
        """
    )


def test_the_code_with_all_rewrites(ws: Workspace) -> None:
    model = ws.build(ws.base())
    assert _code(model) == _text(
        """
        def forward(self, tokens, ctx):
            embed = self.embed(tokens)
            layers = self.layers(embed, ctx)
            x = layers[0]
            x_delta = layers[1]
            norm_and_sum = self.norm(x_delta, x)
            norm_1 = norm_and_sum[0]
            lm_head = self.lm_head(norm_1)
            return lm_head
        """
    )
    assert _code(model.layers[0]) == _text(
        """
        def forward(self, x, ctx):
            attn_norm = self.attn_norm(x)
            attn = self.attn(attn_norm, ctx)
            mlp_norm_and_sum = self.mlp_norm(attn, x)
            mlp_norm_1 = mlp_norm_and_sum[0]
            x_3 = mlp_norm_and_sum[1]
            mlp = self.mlp(mlp_norm_1)
            return (x_3, mlp)
        """
    )
    assert _code(model.layers[1]) == _text(
        """
        def forward(self, x, x_delta, ctx):
            attn_norm_and_sum = self.attn_norm(x_delta, x)
            attn_norm_1 = attn_norm_and_sum[0]
            x_sum_1 = attn_norm_and_sum[1]
            attn = self.attn(attn_norm_1, ctx)
            mlp_norm_and_sum = self.mlp_norm(attn, x_sum_1)
            mlp_norm_1 = mlp_norm_and_sum[0]
            x_3 = mlp_norm_and_sum[1]
            mlp = self.mlp(mlp_norm_1)
            return (x_3, mlp)
        """
    )


def test_numbers_of_a_layer_are_attributes(ws: Workspace) -> None:
    equation = "x = sqrt(1 - 1/(2*(i+1))) * x + hidden_size ** -0.5 * mlp(mlp_norm(x))"
    model = ws.build(ws.base(("x = x + mlp(mlp_norm(x))", equation)), rewrites="none")
    assert "scale_0 = self.scale_0" in _code(model.layers[0])
    assert "scaled_2 = 0.3535533905932738 * mlp" in _code(model.layers[0])
    assert [layer.scale_0 for layer in model.layers] == [0.5**0.5, 0.75**0.5]


def test_one_number_used_twice_is_one_attribute(ws: Workspace) -> None:
    model = ws.build(ws.base(("x = x + mlp(mlp_norm(x))", "x = x / (i+1) + mlp(x / (i + 1))"),
                             ("    mlp_norm: {block: RMSNorm, eps: 1e-5}\n", "")))  # fmt: skip
    assert hasattr(model.layers[0], "scale_0") and not hasattr(model.layers[0], "scale_1")


def test_a_null_softcap_is_none(ws: Workspace) -> None:
    capped = "logits = softcap(lm_head(norm(x)), ${hf:cap})"
    for cap, called in ((None, False), (30.0, True)):
        spec = ws.base(("logits = lm_head(norm(x))", capped), config={"cap": cap})
        assert ("softcap" in ws.build(spec).code) is called


def test_layers_of_a_kind_share_their_code(ws: Workspace) -> None:
    kinds = "count: 8\n  kinds: b if i % 2 else a\n  variants: {a: {}, b: {}}"
    model = ws.build(ws.base(("count: 2", kinds)))
    codes = [id(type(layer).forward.__code__) for layer in model.layers]
    assert len({*codes[1::2]}) == 1 and len({*codes[2::2]}) == 1
    assert len({*codes}) == 3, "the first layer may differ from the others of its kind"
    none = ws.build(ws.base(("count: 2", kinds)), rewrites="none")
    assert len({id(type(layer).forward.__code__) for layer in none.layers}) == 2


def test_an_80_layer_70b_model_takes_no_memory() -> None:
    model = build_model(load_spec("llama", LLAMA_70B, roots=[PACKAGE_ROOT]))
    parameters = list(model.parameters())
    assert all(parameter.is_meta for parameter in parameters)
    assert sum(p.numel() for p in parameters) == 70_553_706_496
    assert len({id(type(layer).forward.__code__) for layer in model.layers}) == 2
    assert len(model.layers) == 80


def test_names_of_parameters(ws: Workspace) -> None:
    model = ws.build(ws.base())
    names = [name for name, _ in model.named_parameters()]
    assert names[0] == "embed.weight"
    assert "layers.1.mlp.up.weight" in names
    assert {name.split(".")[0] for name in names} == {"embed", "layers", "norm", "lm_head"}
    assert model.spec.name == "my" and model.tp.size == 1


def test_caches_are_numbered_in_order(ws: Workspace) -> None:
    drop = "{blocks: {attn: null, attn_norm: null}, wiring: [x = x + mlp(mlp_norm(x))]}"
    layers = f"count: 4\n  kinds: b if i == 1 else a\n  variants: {{a: {{}}, b: {drop}}}"
    model = ws.build(ws.base(("count: 2", layers)))
    indices = [getattr(getattr(layer, "attn", None), "cache_index", None) for layer in model.layers]
    assert indices == [0, None, 1, 2]


def test_a_tied_head_is_the_embedding(ws: Workspace) -> None:
    model = ws.build(ws.base(("lm_head: {block: Head}", "lm_head: {block: Head, tied: true}")))
    assert model.lm_head.weight is model.embed.weight
    with pytest.raises(SpecError, match="my: a tied head needs exactly one token embedding, not 2"):
        ws.build(
            ws.base(
                ("lm_head: {block: Head}", "lm_head: {block: Head, tied: true}\n"
                 "embed2: {block: Embed}"),
                ("layers(embed(tokens))", "layers(embed(tokens) + embed2(tokens))"),
            )
        )  # fmt: skip


def test_it_is_an_ordinary_module(ws: Workspace) -> None:
    model = ws.build(ws.base())
    model.to_empty(device="cpu")
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter)
    seen: list[tuple[int, ...]] = []
    model.layers[1].mlp.register_forward_hook(lambda m, args, out: seen.append(tuple(out.shape)))
    ids = torch.arange(10).view(2, 5)
    logits = model(ids, ForwardContext.dense(5))
    logits.sum().backward()
    assert logits.shape == (2, 5, 11) and seen == [(2, 5, 8)]
    assert all(parameter.grad is not None for parameter in model.parameters())
    other = ws.build(ws.base()).to_empty(device="cpu")
    other.load_state_dict(model.state_dict())
    assert torch.equal(other(ids, ForwardContext.dense(5)), logits)


def test_positions_reach_the_blocks_that_ask(ws: Workspace) -> None:
    model = ws.build(ws.spec(changed()))
    calls = [node for node in model.layers[0].graph.nodes if node.op == "call_module"]
    with_context = {str(node.target) for node in calls if "ctx" in map(str, node.args)}
    assert with_context == {"attn"}


def test_layers_of_a_kind_run_one_code(ws: Workspace) -> None:
    model = ws.build(ws.base(("count: 2", "count: 4")))
    codes = [type(layer).forward.__code__ for layer in model.layers]
    assert codes[1] is codes[2] is codes[3] and codes[0] is not codes[1]  # the first has no pair
    assert model.layers[3].code == model.layers[1].code
    edited = model.layers[3]
    edited.recompile()
    assert type(edited).forward.__code__ is not codes[1]


def test_a_copy_is_a_model_of_its_own(ws: Workspace) -> None:
    model = ws.build(ws.base())
    twin = copy.deepcopy(model)
    assert twin.spec == model.spec and twin.tp == model.tp
    names = dict(model.named_parameters())
    assert dict(twin.named_parameters()).keys() == names.keys()
    assert all(p is not names[name] for name, p in twin.named_parameters())
