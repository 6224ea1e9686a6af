"""The pieces of verify that know no model: sums, errors, traces, small configs, other weights."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from assembler.blocks.parallel import Part, ShardDim
from assembler.verifying.compare import compare_logits, nearest, relative_error
from assembler.verifying.ids import random_ids
from assembler.verifying.random_weights import neutral_value
from assembler.verifying.shrink import enlivened, shrunk
from assembler.verifying.sums import as_softcap, as_sum
from assembler.verifying.trace import recorded
from assembler.verifying.weight_changes import weight_changes
from assembler.weights.parameters import ParameterSlot

X, A, M = torch.randn(3, 2, 5, 8, generator=torch.Generator().manual_seed(0))
TERMS = {"x": X, "attn(...)": A, "mlp(...)": M}


@pytest.mark.parametrize(
    ("target", "text"),
    [
        (X, "x"),
        (-A, "-attn(...)"),
        (X + A, "x + attn(...)"),
        (X - 0.22 * M, "x - 0.22 * mlp(...)"),
        (0.5 * X + A + 3 * M, "0.5 * x + attn(...) + 3 * mlp(...)"),
        (X * A, None),
        (torch.zeros_like(X), None),
    ],
)
def test_sums(target: torch.Tensor, text: str | None) -> None:
    assert as_sum(target, TERMS) == text


def test_softcaps() -> None:
    target = 3.0 * torch.tanh(A / 3.0)
    assert as_softcap(target, TERMS, {"final_softcap": 3.0, "x": 1}) == "softcap(attn(...), 3.0)"
    assert as_softcap(target, TERMS, {"other": 3.0}) is None


def test_errors_are_relative_and_forgive_outliers() -> None:
    reference = X.clone()
    reference[0, 0, 0] = 1e4
    assert relative_error(reference * (1 + 1e-7), reference) < 2e-5
    assert relative_error(X + 1.0, X) == pytest.approx(1 / float(X.std()), rel=0.05)
    assert relative_error(X, torch.zeros(3)) is None
    assert relative_error(X * torch.nan, X) == float("inf")
    assert relative_error(X, X.view(10, 8)) == 0


def test_nearest_takes_the_shape() -> None:
    found = nearest(X, [A, X.view(10, 8) + 0.1, torch.zeros(3)])
    assert torch.equal(found, X + 0.1)


def test_logits_that_are_not_finite() -> None:
    assert not compare_logits(X * torch.inf, X, 1e-5).passed
    assert compare_logits(X, X * 10, 1e-5).bound > 5e-5


def test_traces_hold_the_first_call_as_it_was() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = nn.ReLU(inplace=True)

        def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, None]:
            self.inner(x)
            return self.inner(x + 1), None

    model, given = Twice(), torch.tensor([-1.0, 2.0])
    with recorded(model, ["", "inner"]) as calls:
        model(given.clone())
    assert list(calls) == ["", "inner"]
    assert torch.equal(calls["inner"].inputs[0], given)
    assert torch.equal(calls["inner"].outputs[0], given.relu())
    assert torch.equal(calls[""].outputs[0], given.relu() + 1)
    assert not model.inner._forward_hooks


def test_ids_leave_special_tokens_out() -> None:
    config = {"pad_token_id": 3, "text_config": {"eos_token_id": [1, 2]}, "id2label": {0: "a"}}
    ids = random_ids(6, 4, 50, config)
    assert ids.shape == (4, 50) and set(ids.flatten().tolist()) == {0, 4, 5}
    assert torch.equal(ids, random_ids(6, 4, 50, config))


def test_shrinking_keeps_what_a_model_is() -> None:
    kinds = ["full", "sliding", "sliding", "sliding", "full", "chunked"] * 5
    config = {
        "hidden_size": 4096,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "head_dim": 256,
        "num_hidden_layers": 30,
        "layer_types": kinds,
        "vocab_size": 150_000,
        "rms_norm_eps": 1e-6,
        "sliding_window": None,
        "attn_config": {"kv_n_heads": 1},
        "eos_token_id": 149_000,
        "moe_layer_end_index": 29,
    }
    small = shrunk(config)
    assert small["num_hidden_layers"] == 6 and small["layer_types"] == kinds[:6]
    assert small["moe_layer_end_index"] == 5
    assert (small["num_attention_heads"], small["num_key_value_heads"]) == (4, 2)
    assert small["head_dim"] * 4 != small["hidden_size"]  # as before
    assert small["attn_config"] == {"kv_n_heads": 1} and small["sliding_window"] is None
    assert small["rms_norm_eps"] > 1e-4 and small["eos_token_id"] < small["vocab_size"] <= 101


def test_key_value_heads_left_null_get_a_number() -> None:
    small = shrunk({"num_attention_heads": 48, "num_key_value_heads": None})
    assert small == {"num_attention_heads": 4, "num_key_value_heads": 2}


def test_the_neutral_weight_of_a_norm_is_found_out_whatever_it_starts_with() -> None:
    class Norm1P(nn.LayerNorm):  # Nemotron's
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return nn.functional.layer_norm(x, self.normalized_shape, self.weight + 1, self.bias)

    for norm, neutral in ((nn.LayerNorm(8), 1.0), (nn.RMSNorm(8), 1.0), (Norm1P(8), 0.0)):
        nn.init.constant_(norm.weight, 0.7)
        with torch.no_grad():
            assert neutral_value(norm) == neutral
        assert torch.equal(norm.weight, torch.full((8,), 0.7))


def test_multipliers_of_one_become_others() -> None:
    fields = {"residual_multiplier": 1.0, "logits_scaling": 1.0, "rope_theta": 1.0}
    assert enlivened(fields) == {"logits_scaling": 1.5, "residual_multiplier": 1.75}


def test_every_order_of_fused_rows_is_tried() -> None:
    parts = (Part("q", 8, unit=2), Part("k", 4, unit=2), Part("v", 4, unit=2))
    slot = ParameterSlot(
        "attn.qkv.weight", "attn.qkv", "weight", ShardDim("column", (16, 3), 0, parts)
    )
    weight = torch.arange(48.0).view(16, 3)
    found = {
        c.change: c.weights for c in weight_changes({"qkv.weight": weight}, {"qkv.weight": slot})
    }
    assert set(found) == {
        "the parts of qkv in the order q, v, k",
        "qkv: per: kv_head",
        "qkv: one part after the other",
    }
    rows = found["qkv: per: kv_head"]["qkv.weight"][:, 0] / 3
    assert rows.tolist() == [0, 1, 2, 3, 8, 9, 10, 11, 4, 5, 12, 13, 6, 7, 14, 15]
    swapped = found["the parts of qkv in the order q, v, k"]["qkv.weight"]
    assert torch.equal(swapped[8:12], weight[12:]) and torch.equal(swapped[12:], weight[8:12])
