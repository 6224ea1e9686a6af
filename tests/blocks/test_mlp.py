"""Feed-forward blocks against those of transformers with the same weights."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from block_harness import build_context, fill, randn
from transformers import BitNetConfig, GPTNeoXConfig, LlamaConfig
from transformers.activations import ACT2FN
from transformers.models.bitnet.modeling_bitnet import BitNetMLP
from transformers.models.gpt_neox.modeling_gpt_neox import GPTNeoXMLP
from transformers.models.llama.modeling_llama import LlamaMLP

from assembler.blocks.activations import XIELU
from assembler.blocks.mlp import MLP, GatedMLP
from assembler.blocks.norms import RMSNorm
from assembler.blocks.parallel import TensorParallel
from assembler.errors import SpecError

WIDTH, INNER = 40, 56


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("activation", ["silu", "gelu_pytorch_tanh", "relu2"])
def test_gated_mlp_equals_llama(activation, bias):
    config = LlamaConfig(
        hidden_size=WIDTH,
        num_attention_heads=4,
        intermediate_size=INNER,
        hidden_act=activation,
        mlp_bias=bias,
        pad_token_id=None,
    )
    reference = fill(LlamaMLP(config))
    ours = GatedMLP(build_context(WIDTH), intermediate_size=INNER, activation=activation, bias=bias)
    state = {}
    for leaf in ("weight", "bias") if bias else ("weight",):
        gate, up = getattr(reference.gate_proj, leaf), getattr(reference.up_proj, leaf)
        state[f"gate_up.{leaf}"] = torch.cat((gate, up))
        state[f"down.{leaf}"] = getattr(reference.down_proj, leaf)
    ours.load_state_dict(state)
    x = randn(2, 3, WIDTH)
    torch.testing.assert_close(ours(x), reference(x), rtol=1e-5, atol=1e-5)


def test_plain_mlp_equals_gpt_neox():
    config = GPTNeoXConfig(
        hidden_size=WIDTH, num_attention_heads=4, intermediate_size=INNER, hidden_act="gelu"
    )
    reference = fill(GPTNeoXMLP(config))
    ours = MLP(build_context(WIDTH), intermediate_size=INNER, activation="gelu", bias=True)
    names = {"dense_h_to_4h": "up", "dense_4h_to_h": "down"}
    ours.load_state_dict(
        {
            f"{names[name.split('.')[0]]}.{name.split('.')[1]}": value
            for name, value in reference.state_dict().items()
        }
    )
    x = randn(2, 3, WIDTH)
    torch.testing.assert_close(ours(x), reference(x), rtol=1e-5, atol=1e-5)


def test_inner_norm_equals_bitnet():
    config = BitNetConfig(
        hidden_size=WIDTH,
        intermediate_size=INNER,
        num_attention_heads=4,
        num_key_value_heads=2,
        hidden_act="relu2",
        rms_norm_eps=2e-3,
    )
    reference = fill(BitNetMLP(config))
    norm = partial(RMSNorm, eps=2e-3)
    ours = GatedMLP(
        build_context(WIDTH), intermediate_size=INNER, activation="relu2", inner_norm=norm
    )
    gate_up = torch.cat((reference.gate_proj.weight, reference.up_proj.weight))
    ours.load_state_dict(
        {
            "gate_up.weight": gate_up,
            "down.weight": reference.down_proj.weight,
            "inner_norm.weight": reference.ffn_sub_norm.weight,
        }
    )
    x = randn(2, 3, WIDTH)
    torch.testing.assert_close(ours(x), reference(x), rtol=1e-5, atol=1e-5)


def test_clamped_and_offset():
    """The formula of GptOssExperts._apply_gate: alpha 1.702 is quick_gelu's."""
    fields = {"intermediate_size": INNER, "activation": "quick_gelu", "limit": 0.7, "up_offset": 1}
    mlp = fill(GatedMLP(build_context(WIDTH), **fields))
    x = randn(5, WIDTH)
    gate, up = mlp.gate_up(x).chunk(2, dim=-1)
    assert (gate > 0.7).any() and (gate < -0.7).any() and (up.abs() > 0.7).any()
    gate, up = gate.clamp(min=None, max=0.7), up.clamp(min=-0.7, max=0.7)
    expected = mlp.down((up + 1) * (gate * torch.sigmoid(gate * 1.702)))
    torch.testing.assert_close(mlp(x), expected, rtol=1e-5, atol=1e-5)


def test_learned_activation_equals_apertus():
    reference = ACT2FN["xielu"].float()
    mlp = MLP(build_context(WIDTH), intermediate_size=INNER, activation=XIELU)
    assert {n for n, _ in mlp.act.named_parameters()} == set(reference.state_dict())
    with torch.no_grad():
        reference.alpha_p.fill_(0.3), reference.alpha_n.fill_(-0.4)
        reference.beta.fill_(0.37), reference.eps.fill_(-2e-2)
    mlp.act.load_state_dict(reference.state_dict())
    assert [p.requires_grad for p in mlp.act.parameters()] == [True, True, False, False]
    x = torch.linspace(-9, 9, 1001)
    torch.testing.assert_close(mlp.act(x), reference(x), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("block", [GatedMLP, MLP])
def test_every_activation_trains(block):
    for activation in ("silu", "gelu", "relu", "tanh", "sigmoid", "linear", "mish"):
        mlp = block(build_context(WIDTH), intermediate_size=INNER, activation=activation)
        fill(mlp)(randn(3, WIDTH)).square().mean().backward()
        assert all(p.grad.isfinite().all() and p.grad.any() for p in mlp.parameters())


@pytest.mark.parametrize(("block", "name"), [(GatedMLP, "gate_up: 'gate'"), (MLP, "up: 'up'")])
def test_width_that_ranks_cannot_share_is_refused(block, name):
    ctx = build_context(WIDTH, tp=TensorParallel(size=60), path="layers.2.mlp")
    with pytest.raises(SpecError, match=rf"layers\.2\.mlp\.{name} has 56 rows"):
        block(ctx, intermediate_size=INNER, activation="silu")
