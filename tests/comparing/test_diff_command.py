"""What `assembler.diff` says of architectures whose differences are known."""

import json
from pathlib import Path

import pytest

from assembler import diff_architectures
from assembler.comparing.text import text_lines
from assembler.diff import main
from assembler.errors import AssemblerError, OptionError
from assembler.model.conf_files import conf_names, search_roots


def of(conf, other):
    """{(kind, place): (new, old)} of blocks and fields."""
    changes = diff_architectures(conf, other).blocks
    return {(change.kind, change.where): (change.new, change.old) for change in changes}


def test_qwen3_is_llama_with_qk_norm():
    difference = diff_architectures("qwen3", "llama")
    found = {change.where: change for change in difference.blocks}
    norm = found["layers.attn.qk_norm"]
    assert (norm.kind, norm.new, norm.old) == ("added", "RMSNorm {eps: ${hf:rms_norm_eps}}", "")
    assert "queries and keys" in norm.meaning
    assert found["layers.attn.head_dim"].kind == "read"  # only its default differs
    assert difference.wiring == ()
    targets = ["layers.{i}.attn.q_norm", "layers.{i}.attn.k_norm"]
    assert [(c.kind, c.where) for c in difference.weights] == [("added", t) for t in targets]


def test_both_directions_say_the_same():
    there, back = of("gemma2", "llama"), of("llama", "gemma2")
    turned = {"added": "dropped", "dropped": "added", "changed": "changed", "read": "read"}
    mirrored = {(turned[kind], where): (b, a) for (kind, where), (a, b) in back.items()}
    assert there == mirrored
    assert ("added", "layers.post_attn_norm") in there


def test_wiring_as_a_diff():
    lines = list(text_lines(diff_architectures("gemma2", "llama")))
    at = lines.index("layers:")
    assert lines[at : at + 8] == [
        "layers:",
        "```diff",
        "--- llama",
        "+++ gemma2",
        "-x = x + attn(attn_norm(x))",
        "-x = x + mlp(mlp_norm(x))",
        "+x = x + post_attn_norm(attn(attn_norm(x)))",
        "+x = x + post_mlp_norm(mlp(mlp_norm(x)))",
    ]
    mixtral = {w.where: (w.new, w.old) for w in diff_architectures("mixtral", "llama").wiring}
    assert mixtral["layers"][0][1] == "x = x + moe(mlp_norm(x))"


def test_another_block_in_a_place_is_one_change():
    [(new, old)] = [v for (kind, where), v in of("gpt2", "llama").items() if where == "layers.mlp"]
    assert new.startswith("MLP {") and old.startswith("GatedMLP {")


def test_layouts_on_disk():
    changes = {c.where: c for c in diff_architectures("gpt_neox", "falcon").weights}
    qkv = changes["layers.{i}.attn.qkv"]
    assert "per: head" in qkv.new and "per: kv_head" in qkv.old
    fused = {c.where: c for c in diff_architectures("phi3", "llama").weights}
    assert fused["layers.{i}.attn.qkv"].new.endswith("qkv_proj {parts: [q, k, v]}")


def test_places_where_the_same_differs_share_a_line():
    lines = [
        line for line in text_lines(diff_architectures("gemma2", "llama")) if "offset`" in line
    ]
    assert lines[0].startswith(
        "- `norm.offset`, `layers.attn_norm.offset`, `layers.mlp_norm.offset`"
    )


@pytest.mark.parametrize("conf", conf_names(search_roots()))
def test_every_architecture_can_be_compared(conf: str):
    assert diff_architectures(conf, conf).is_empty
    difference = diff_architectures(conf, "llama")  # which SmolLM2 is, with a checkpoint
    assert difference.is_empty == (conf in ("llama", "smollm2"))
    json.dumps(difference.to_json())


def test_files_of_ones_own(tmp_path: Path, monkeypatch):
    (tmp_path / "conf").mkdir()
    (tmp_path / "weight_maps").mkdir()
    own = tmp_path / "conf" / "mine.yaml"
    own.write_text("defaults: [qwen3, _self_]\nweight_map: mine\nembed: {scale: 2.0}\n")
    own_map = tmp_path / "weight_maps" / "mine.yaml"
    own_map.write_text("extends: qwen3\nweights: {norm: model.last}\n")
    by_path = diff_architectures(own, "qwen3", search_path=[tmp_path])
    assert [(c.where, c.new) for c in by_path.blocks] == [("embed.scale", "2.0")]
    assert [(c.where, c.new, c.old) for c in by_path.weights] == [
        ("norm", "model.last", "model.norm")
    ]
    assert diff_architectures("mine", "qwen3", search_path=[tmp_path]).blocks == by_path.blocks


def test_the_command(capsys):
    assert main(["conf=llama", "other=llama"]) == 0
    assert "the same model, with the same weight map" in capsys.readouterr().out
    assert main(["conf=qwen3", "other=llama", "format=json"]) == 1
    assert json.loads(capsys.readouterr().out)["same"] is False
    assert main(["--help"]) == 0 and "other=null" in capsys.readouterr().out
    with pytest.raises(OptionError, match="two architectures"):
        main(["conf=llama"])
    with pytest.raises(OptionError, match="compared as they are"):
        main(["conf=llama", "other=qwen3", "conf.layers.count=2"])
    with pytest.raises(AssemblerError, match=r"no conf named 'lama'.*llama"):
        main(["conf=lama", "other=qwen3"])
    with pytest.raises(AssemblerError, match=r"^other=\./nope\.yaml: no such file"):
        main(["conf=llama", "other=./nope.yaml"])


@pytest.mark.parametrize("text", ["weights: {norm: model.norm}\n", "extends: llama\n"])
def test_a_weight_map_is_no_architecture(text: str, tmp_path: Path):
    (tmp_path / "mine.yaml").write_text(text)
    with pytest.raises(AssemblerError, match=r"^other=.*mine\.yaml: this is a weight map"):
        diff_architectures("llama", tmp_path / "mine.yaml")
