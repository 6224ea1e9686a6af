"""What a draft concludes from names and shapes; coverage is the planner's word on it."""

from __future__ import annotations

from conftest import Drafting
from invented_checkpoints import HEAD_DIM, HEADS, HIDDEN, INNER, KV_HEADS, LAYERS, VOCAB

Q_ROWS, KV_ROWS = HEADS * HEAD_DIM, KV_HEADS * HEAD_DIM
QKV = Q_ROWS + 2 * KV_ROWS
APART = dict.fromkeys(("attn.wq.weight", "attn.wk.weight", "attn.wv.weight"))
UNGATED = {"ffn.w1.weight": None, "ffn.w3.weight": None, "ffn.w2.weight": None}
MULTI_HEAD = dict.fromkeys(("attn.wk.weight", "attn.wv.weight"), (Q_ROWS, HIDDEN))
NORMS = dict.fromkeys(("ln_1.weight", "ln_2.weight"))


def test_names_of_tensors_and_fields_are_all_that_differs(draft: Drafting) -> None:
    drafted = draft()
    assert drafted.report.complete
    assert drafted.conf["layers"]["count"] == "${hf:n_layers}"
    assert "wiring" not in drafted.conf and "wiring" not in drafted.conf["layers"]
    assert drafted.layer["attn.qkv"] == ["attn.wq", "attn.wk", "attn.wv"]
    assert drafted.layer["mlp.gate_up"] == ["ffn.w1", "ffn.w3"]


def test_fused_projections_with_biases(draft: Drafting) -> None:
    qkv = {"attn.wqkv.weight": (QKV, HIDDEN), "attn.wqkv.bias": (QKV,)}
    gate_up = {"ffn.gate_up.weight": (2 * INNER, HIDDEN), "ffn.down.weight": (HIDDEN, INNER)}
    drafted = draft({}, {**APART, **UNGATED, **qkv, **gate_up})
    assert drafted.report.complete
    assert drafted.block("attn")["qkv_bias"] is True
    assert drafted.layer["attn.qkv"] == {"from": "attn.wqkv", "parts": ["q", "k", "v"]}
    assert drafted.layer["mlp.gate_up"] == {"from": "ffn.gate_up", "parts": ["gate", "up"]}


def test_matrices_stored_input_first(draft: Drafting) -> None:
    plain = {"ffn.c_fc.weight": (HIDDEN, INNER), "ffn.c_proj.weight": (INNER, HIDDEN)}
    attention = {
        "attn.c_attn.weight": (HIDDEN, QKV),
        "attn.c_proj.weight": (Q_ROWS, HIDDEN),
        "attn.wo.weight": None,
    }
    drafted = draft({}, {**APART, **UNGATED, **plain, **attention})
    assert drafted.report.complete
    assert drafted.block("mlp")["block"] == "MLP"
    assert drafted.layer["mlp.down"] == {"from": "ffn.c_proj", "transpose": True}
    assert drafted.layer["attn.qkv"]["transpose"] is True


def test_what_the_norms_of_queries_span(draft: Drafting) -> None:
    head = {"attn.q_norm.weight": (HEAD_DIM,), "attn.k_norm.weight": (HEAD_DIM,)}
    assert draft({}, head).block("attn")["qk_norm"]["block"] == "RMSNorm"
    full = draft({}, {"attn.q_norm.weight": (Q_ROWS,), "attn.k_norm.weight": (KV_ROWS,)})
    assert full.block("attn")["qk_norm"]["over"] == "full"
    assert full.report.complete


def test_where_norms_stand(draft: Drafting) -> None:
    around = dict.fromkeys(
        (
            "input_norm.weight",
            "post_attention_norm.weight",
            "pre_ffn_norm.weight",
            "post_ffn_norm.weight",
        ),
        (HIDDEN,),
    )
    drafted = draft({}, {**NORMS, **around})
    assert drafted.report.complete
    assert drafted.conf["layers"]["wiring"] == [
        "x = x + post_attn_norm(attn(attn_norm(x)))",
        "x = x + post_mlp_norm(mlp(mlp_norm(x)))",
    ]
    behind = dict.fromkeys(list(around)[1::2], (HIDDEN,))
    drafted = draft({}, {**NORMS, **behind})
    assert drafted.report.complete
    assert drafted.conf["layers"]["wiring"] == [
        "x = x + attn_norm(attn(x))",
        "x = x + mlp_norm(mlp(x))",
    ]
    one = draft({}, {"ln_2.weight": None})
    assert one.report.complete
    assert one.conf["layers"]["wiring"] == ["h = attn_norm(x)", "x = x + attn(h) + mlp(h)"]


def test_norms_with_biases_and_norms_without_tensors(draft: Drafting) -> None:
    biased = {"ln_1.bias": (HIDDEN,), "ln_2.bias": (HIDDEN,)}
    drafted = draft({}, biased, {"ln_f.bias": (HIDDEN,)})
    assert drafted.report.complete
    assert drafted.block("attn_norm")["block"] == "LayerNorm"
    bare = draft({}, NORMS, {"ln_f.weight": None})
    assert bare.report.complete
    assert bare.block("mlp_norm") == {"weight": False}


def test_a_mixture_of_experts(draft: Drafting) -> None:
    experts = {"ffn.router.weight": (3, HIDDEN)}
    for e in range(3):
        experts |= {f"ffn.experts.{e}.{w}.weight": (28, HIDDEN) for w in ("w1", "w3")}
        experts[f"ffn.experts.{e}.w2.weight"] = (HIDDEN, 28)
    config = {"num_experts": 3, "num_experts_per_tok": 2, "moe_intermediate_size": 28}
    drafted = draft(config, {**UNGATED, **experts})
    assert drafted.report.complete
    assert drafted.block("moe")["num_experts"] == "${hf:num_experts}"
    assert drafted.block("moe")["experts"]["intermediate_size"] == "${hf:moe_intermediate_size}"
    gate_up = drafted.layer["moe.experts.gate_up"]
    assert gate_up == ["ffn.experts.{e}.w1", "ffn.experts.{e}.w3"]


def test_scales_that_the_config_names(draft: Drafting) -> None:
    config = {"logit_cap": 30.0, "embedding_multiplier": 3.0, "residual_multiplier": 0.5}
    drafted = draft(config)
    assert drafted.report.complete
    assert drafted.conf["wiring"] == [
        "x = layers(${hf:embedding_multiplier} * embed(tokens))",
        "logits = softcap(lm_head(norm(x)), ${hf:logit_cap})",
    ]
    assert drafted.conf["layers"]["wiring"][0] == (
        "x = x + ${hf:residual_multiplier} * attn(attn_norm(x))"
    )


def test_windows_and_layers_that_do_not_rotate(draft: Drafting) -> None:
    types = ["sliding_attention", "full_attention"]
    drafted = draft({"layer_types": types, "sliding_window": 7, "no_rope_layers": [1, 0]})
    assert drafted.report.complete
    assert drafted.conf["layers"]["kinds"]["attention"] == "${hf:layer_types}"
    variants = drafted.conf["layers"]["variants"]
    assert variants["sliding_attention"]["blocks"]["attn"] == {"window": "${hf:sliding_window}"}
    assert variants["not_rotated"]["blocks"]["attn"] == {"rope": None}


def test_a_head_without_a_tensor_is_tied(draft: Drafting) -> None:
    drafted = draft({}, {}, {"head.weight": None})
    assert drafted.report.complete and drafted.conf["lm_head"] == {"tied": True}


def test_a_head_of_any_name_is_known_by_its_shape(draft: Drafting) -> None:
    unusual = {"head.weight": None, "out.weight": (VOCAB, HIDDEN)}
    drafted = draft({"tie_word_embeddings": False}, {}, unusual)
    assert drafted.report.complete and "lm_head" not in drafted.conf
    assert drafted.weights["weights"]["lm_head"] == "out"


def test_the_config_says_that_there_is_a_head(draft: Drafting) -> None:
    factored = {"head.weight": None, "a.weight": (VOCAB, HIDDEN), "b.weight": (VOCAB, HIDDEN)}
    drafted = draft({"tie_word_embeddings": False}, {}, factored)
    assert "lm_head" not in drafted.conf
    assert any("lm_head" in finding for finding in drafted.report.findings)
    assert drafted.report.unknown == ("a.weight", "b.weight")


def test_no_field_has_the_same_name_twice(draft: Drafting) -> None:
    config = {"n_embd": HIDDEN, "d_model": None, "n_inner": None, "d_ff": None}
    drafted = draft(config, parent="ctrl")
    assert drafted.report.complete
    assert "n_embd|" not in drafted.text and "|n_embd" not in drafted.text


def test_sizes_whose_fields_only_their_values_tell(draft: Drafting) -> None:
    unusual = {"d_model": None, "n_layers": None, "width": HIDDEN, "depth": LAYERS}
    drafted = draft({**unusual, "n_kv_heads": HEADS, "head_dim": HEAD_DIM}, MULTI_HEAD)
    assert drafted.conf["hidden_size"] == "${hf:width}"
    assert drafted.conf["layers"]["count"] == "${hf:depth}"
    assert "${hf:depth}  # guess: the only field of config.json with this value" in drafted.text
    twice = draft({**unusual, "girth": HIDDEN, "n_kv_heads": HEADS}, MULTI_HEAD)
    assert "${hf:width}" not in twice.text and "${hf:girth}" not in twice.text


def test_other_modalities_are_left_aside_with_the_reason(draft: Drafting) -> None:
    drafted = draft({}, {}, {"vision_tower.patch.weight": (VOCAB, 8)})
    assert drafted.report.complete
    assert all("reason" in entry for entry in drafted.weights.get("ignore", {}).values())
