"""Feed-forward blocks against those of transformers with the same weights."""

from __future__ import annotations

import pytest
import torch
from block_harness import build_context, fill, randn
from transformers import GPTNeoXConfig, LlamaConfig
from transformers.models.gpt_neox.modeling_gpt_neox import GPTNeoXMLP
from transformers.models.llama.modeling_llama import LlamaMLP

from assembler.blocks.mlp import MLP, GatedMLP
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
