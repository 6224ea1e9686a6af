"""`python -m assembler.export`: folders that transformers loads, and nothing left behind."""

from __future__ import annotations

import json
import shutil
from collections import namedtuple
from pathlib import Path

import pytest
import torch
from command_runs import Run, refused
from safetensors.torch import load_file
from tiny_llama import change_config, change_tensors, chatml, greedy
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM

from assembler import coverage, export, export_files, exporting
from assembler.errors import TokenizerError
from assembler.weights.index import CheckpointIndex, TensorInfo

IDS = torch.arange(20).view(2, 10)


def contents(folder: Path) -> dict[str, bytes]:
    return {
        f.relative_to(folder).as_posix(): f.read_bytes() for f in folder.rglob("*") if f.is_file()
    }


def no_trace(folder: Path) -> bool:
    """No hidden folder of an export that did not end."""
    return not list(folder.glob(".*"))


def test_a_gguf_file_becomes_a_folder(
    run: Run, reference: LlamaForCausalLM, home: Path, tmp_path: Path
):
    result = run(export, f"checkpoint={home / 'tiny.gguf'}", "out=made/here")
    assert (result.status, result.err) == (0, "")
    assert result.out == "made/here: 30 tensors, 132.0 kB in 1 file, weight map 'llama'\n"
    out = tmp_path / "made" / "here"
    assert sorted(contents(out)) == [
        "chat_template.jinja",
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
    ]
    found, expected = load_file(out / "model.safetensors"), reference.state_dict()
    assert set(found) == set(expected)
    for name, value in expected.items():
        assert torch.equal(found[name], value), name
    theirs, info = AutoModelForCausalLM.from_pretrained(out, output_loading_info=True)
    assert not any(info.values())
    assert torch.equal(theirs(IDS).logits, reference(IDS).logits)
    tokenizer = AutoTokenizer.from_pretrained(out)
    message = [{"role": "user", "content": "hey"}]
    assert tokenizer.apply_chat_template(
        message, tokenize=False, add_generation_prompt=True
    ) == chatml("hey")
    assert (
        tokenizer("he said")["input_ids"]
        == AutoTokenizer.from_pretrained(home / "tiny")("he said")["input_ids"]
    )
    assert run(coverage, f"checkpoint={out}").status == 0


def test_the_config_speaks_both_dialects(run: Run, tiny: Path, home: Path, tmp_path: Path):
    run(export, f"checkpoint={home / 'tiny.gguf'}", "out=x", "dtype=bfloat16")
    config = json.loads((tmp_path / "x" / "config.json").read_text())
    assert config["architectures"] == ["LlamaForCausalLM"] and config["model_type"] == "llama"
    assert config["rope_parameters"] == {"rope_type": "default", "rope_theta": 10000.0}
    assert config["rope_theta"] == 10000.0
    assert config["dtype"] == config["torch_dtype"] == "bfloat16"
    assert json.loads((tmp_path / "x" / "generation_config.json").read_text()) == {
        "eos_token_id": config["eos_token_id"]
    }
    assert all(v.dtype == torch.bfloat16 for v in load_file("x/model.safetensors").values())


def test_a_folder_comes_back_with_all_its_files(run: Run, copy: Path, tmp_path: Path):
    (copy / "LICENSE").write_text("free")
    (copy / "README.md").write_text("about")
    (copy / "additional_chat_templates").mkdir()
    (copy / "additional_chat_templates" / "tool_use.jinja").write_text("{{ tools }}")
    assert run(export, f"checkpoint={copy}", "out=x").status == 0
    found, expected = contents(tmp_path / "x"), contents(copy)
    del expected["README.md"]  # a card speaks of one repository
    for config in (found, expected):
        config["config.json"] = json.loads(config["config.json"])
    del expected["model.safetensors"], found["model.safetensors"]  # compared elsewhere
    assert found == expected
    assert {"LICENSE", "additional_chat_templates/tool_use.jinja"} <= set(found)


def test_another_type_in_shards(run: Run, tiny: Path, reference: LlamaForCausalLM, tmp_path: Path):
    arguments = ("dtype=float16", "max_shard_size=20KB")
    result = run(export, f"checkpoint={tiny}", "out=x", *arguments)
    assert result.out.startswith("x: 30 tensors, 66.0 kB in 4 files")
    assert json.loads((tmp_path / "x" / "config.json").read_text())["dtype"] == "float16"
    theirs = AutoModelForCausalLM.from_pretrained("x", dtype="auto")
    expected = reference.state_dict()
    for name, value in theirs.state_dict().items():
        assert value.dtype == torch.float16 and torch.equal(value, expected[name].half()), name
    ids = [1, 2, 3]
    assert greedy(theirs.float(), ids, 4) == greedy(reference, ids, 4)


def test_ignored_tensors_are_copied_and_said(run: Run, copy: Path):
    name = "model.layers.0.self_attn.rotary_emb.inv_freq"
    change_tensors(copy, lambda weights: weights.update({name: torch.ones(4)}))
    result = run(export, f"checkpoint={copy}", "out=x")
    assert result.err == f"copied: {name}: recomputed from the config\n"
    assert torch.equal(load_file("x/model.safetensors")[name], torch.ones(4))


def test_a_map_of_ones_own(run: Run, tiny: Path, tmp_path: Path):
    file = tmp_path / "weight_maps" / "joined.yaml"
    file.parent.mkdir()
    file.write_text(
        "extends: llama\nweights:\n  layers.{i}:\n    attn.qkv: {from: qkv, parts: [v, k, q]}\n"
    )
    result = run(export, f"checkpoint={tiny}", "out=x", "map=joined")
    assert result.out.endswith("weight map 'joined'\n")
    assert "has to know the names of the weight map 'joined'" in result.err
    found, source = load_file("x/model.safetensors"), load_file(tiny / "model.safetensors")
    parts = [source[f"model.layers.1.self_attn.{name}_proj.weight"] for name in "vkq"]
    assert torch.equal(found["model.layers.1.qkv.weight"], torch.cat(parts))
    assert len(found) == len(source) - 6


def test_what_is_refused_writes_nothing(run: Run, tiny: Path, copy: Path, tmp_path: Path):
    taken = tmp_path / "taken"
    taken.mkdir()
    (taken / "notes.txt").write_text("mine")
    at = f"checkpoint={tiny}"
    refused(run(export, at), r"where to\? Pass out=DIR")
    refused(run(export, at, "out=taken"), r"out=.*taken: is not empty\. Choose another folder$")
    refused(run(export, at, "out=taken", "overwrite=true"), "holds files but no model")
    refused(run(export, at, "out=taken/notes.txt"), "is a file or a link")
    refused(run(export, at, "out=taken/notes.txt/x"), "cannot be written: Not a directory")
    refused(run(export, at, f"out={tiny}", "overwrite=true"), "is where the checkpoint is")
    refused(run(export, at, f"out={copy}"), "overwrite=true to replace the whole folder")
    (copy / "runs").mkdir()
    refused(run(export, at, f"out={copy}", "overwrite=true"), "holds the folder runs, which is no")
    refused(run(export, at, f"out={tiny.parent}", "overwrite=true"), "is where the checkpoint is")
    refused(run(export, at, "out=x", "map=gguf/llama"), "for the names of GGUF files")
    refused(run(export, at, "out=x", "map=lama"), "Did you mean 'llama'")
    refused(run(export, at, "out=x", "map=gpt2"), "'gpt2' cannot write this model", "mlp.gate_up")
    refused(run(export, at, "out=x", "conf.layers.count=1"), "an override of the conf changes")
    refused(run(export, at, "out=x", "max_shard_size=5 apples"), "a size is wanted")
    refused(run(export, at, "out=x", "max_shard_size=0"), "a size is wanted")
    refused(run(export, at, "out=x", "dtype=int8"), "'float32', 'bfloat16' or 'float16'")
    change_tensors(copy, lambda weights: weights.pop("model.norm.weight"))
    refused(run(export, f"checkpoint={copy}", "out=x"), "missing: norm.weight")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["copy", "taken"]
    assert contents(taken) == {"notes.txt": b"mine"}


def test_a_tied_head_that_differs_is_refused(run: Run, copy: Path, tmp_path: Path):
    change_config(copy, tie_word_embeddings=True)
    refused(run(export, f"checkpoint={copy}", "out=x"), "'lm_head.weight' differs from")
    embedding = "model.embed_tokens.weight"
    change_tensors(
        copy, lambda weights: weights.update({"lm_head.weight": weights[embedding].clone()})
    )
    result = run(export, f"checkpoint={copy}", "out=x")
    assert result.err == "left out: lm_head.weight: tied to embed.weight\n"
    assert "lm_head.weight" not in load_file("x/model.safetensors")


def test_a_full_disk_is_seen_before_writing(run: Run, tiny: Path, tmp_path: Path, monkeypatch):
    usage = namedtuple("usage", "free")(100)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    refused(run(export, f"checkpoint={tiny}", "out=x"), "takes 131,968 bytes and .* 100 free")
    assert not (tmp_path / "x").exists() and no_trace(tmp_path)


@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError(28, "No space left on device")])
def test_an_export_that_breaks_off_leaves_nothing(
    run: Run, tiny: Path, copy: Path, tmp_path: Path, monkeypatch, error
):
    before, read = contents(copy), CheckpointIndex.read_info

    def fail_late(index: CheckpointIndex, info: TensorInfo) -> torch.Tensor:
        if info.name == "model.norm.weight":
            raise error
        return read(index, info)

    monkeypatch.setattr(CheckpointIndex, "read_info", fail_late)
    for arguments in (["out=new"], [f"out={copy}", "overwrite=true"]):
        result = run(export, f"checkpoint={tiny}", *arguments)
        assert result.status == (130 if error is KeyboardInterrupt else 2) and result.out == ""
        if error is not KeyboardInterrupt:
            assert "cannot be written: No space left on device" in result.err
        assert not (tmp_path / "new").exists() and no_trace(tmp_path)
    assert contents(copy) == before


def test_a_model_is_replaced_whole_when_asked(run: Run, home: Path, copy: Path, tmp_path: Path):
    (copy / "old.safetensors").write_bytes(b"x")
    result = run(export, f"checkpoint={home / 'tiny.gguf'}", f"out={copy}", "overwrite=true")
    assert result.status == 0
    assert not (copy / "old.safetensors").exists() and no_trace(tmp_path)
    assert run(coverage, f"checkpoint={copy}").status == 0


def test_a_tokenizer_that_cannot_be_read_stops_it_before_the_weights(
    run: Run, tiny: Path, home: Path, tmp_path: Path, monkeypatch
):
    def no_tokenizer(metadata: object) -> None:
        raise TokenizerError("the file has no tokenizer")

    monkeypatch.setattr(export_files, "read_metadata", no_tokenizer)
    monkeypatch.setattr(exporting, "execute_export", lambda *_, **__: pytest.fail("too late"))
    refused(run(export, f"checkpoint={home / 'tiny.gguf'}", "out=x"), "has no tokenizer")
    assert not (tmp_path / "x").exists() and no_trace(tmp_path)
