"""`python -m assembler.coverage`: what fits, what does not, and what cannot be checked."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest
from command_runs import Run, refused
from damaged_checkpoints import FINDINGS, UNREADABLE, cut
from safetensors.torch import load_file
from tiny_llama import (
    change_config,
    change_tensors,
    save_llama,
)

from assembler import coverage, generate, loading
from assembler.weights.rank_memory import format_bytes

COMPLETE = "30/30 tensors, 100 % of bytes, 21/21 parameters"


@pytest.mark.parametrize("name", ["tiny", "tiny/model.safetensors", "tiny.gguf"])
def test_a_whole_checkpoint_is_covered(name: str, run: Run, tiny: Path, home: Path):
    result = run(coverage, f"checkpoint={home / name}")
    assert (result.status, result.err) == (0, "")
    lines = result.out.splitlines()
    assert lines[-1] == COMPLETE
    assert any(re.search(r"layers\.\{0-2\}\.attn\.qkv .*\{?q.*k.*v", line) for line in lines)


def test_coverage_as_json(run: Run, tiny: Path, copy: Path):
    data = json.loads(run(coverage, f"checkpoint={tiny}", "format=json").out)
    assert (data["complete"], data["summary"], data["tp_size"]) == (True, COMPLETE, 1)
    file_bytes = sum(t.nbytes for t in load_file(tiny / "model.safetensors").values())
    assert data["totals"]["nbytes"] == sum(row["nbytes"] for row in data["rows"]) == file_bytes
    change_tensors(copy, lambda w: w.pop("model.norm.weight"))
    result = run(coverage, f"checkpoint={copy}", "format=json", "tp=[1,3]")
    assert (result.status, result.err) == (1, "")
    data = json.loads(result.out)
    assert [finding["kind"] for finding in data["1"]["findings"]] == ["missing"]
    assert data["3"]["complete"] is False and "3 ranks cannot share" in data["3"]["refused"]


def test_layers_left_out_are_named(run: Run, tiny: Path):
    result = run(coverage, f"checkpoint={tiny}", "conf.layers.count=1")
    assert result.status == 0
    text = " ".join(result.out.split())
    assert re.search(
        r"ignored: model\.layers\.\{1-2\}.* conf\.layers\.count=1 leaves these lay", text
    )
    assert result.out.splitlines()[-1] == "30/30 tensors, 100 % of bytes, 9/9 parameters"


def test_one_size_of_a_tensor_parallel_group(run: Run, tiny: Path):
    result = run(coverage, f"checkpoint={tiny}", "tp=2")
    assert result.status == 0 and result.out.splitlines()[-1] == COMPLETE
    assert re.search(r"rank 0 of 2$", result.out, re.M) and "tp=2" in result.out
    assert re.search(r"^weights of 2 ranks, each: [\d.]+ kB$", result.out, re.M)
    assert "imbalance" not in result.out
    result = run(coverage, f"checkpoint={tiny}", "tp=3")
    assert (result.status, result.err) == (1, "")
    assert re.match(
        r"tp=3 cannot work: .*'q' has 4 units .* which 3 ranks cannot share", result.out
    )
    for wrong in ("tp=0", "tp=two", "tp=[]", "tp=[1,x]", "tp=true"):
        refused(run(coverage, f"checkpoint={tiny}", wrong), r"tp=.*a number of ranks from 1 on")
    # What is wrong whatever the size is no answer about sizes.
    refused(run(coverage, f"checkpoint={tiny}", "tp=2", "conf=lama"), "no conf named 'lama'")


def test_sizes_are_compared_in_one_overview(run: Run, tiny: Path):
    result = run(coverage, f"checkpoint={tiny}", "tp=[1,2,4]")
    assert (result.status, result.err) == (0, "")
    assert result.out.splitlines()[-1] == f"{COMPLETE}; works with tp=1,2,4"
    for size in (1, 2, 4):
        assert re.search(rf"^ {size} +yes +[\d.]+ kB", result.out, re.M), result.out
    held = "layers.{0-2}.attn.qkv: 'k' and 'v': 2 units of 8 rows, each held 2 times"
    assert f"tp=4: replicated: {held}" in result.out and "tp=2: replicated" not in result.out
    assert "split by row: layers.{0-2}.attn.o, layers.{0-2}.mlp.down" in result.out
    assert re.search(r"whole on every rank: layers.*attn_norm.*, norm \([\d.]+ k?B\)", result.out)
    assert "input_layernorm" not in result.out, "no table of parameters: that is for one size"


def test_a_size_that_is_refused_fails_the_overview(run: Run, tiny: Path):
    result = run(coverage, f"checkpoint={tiny}", "tp=[3,2]")
    assert (result.status, result.err) == (1, "")
    why = "'q' has 4 units of 8 rows in 2 groups, which 3 ranks cannot share"
    for pattern in (
        rf"^tp=3: cannot work: layers\.\{{0-2\}}\.attn\.qkv: {why}; 'k' has 2 units",
        rf"^tp=3: cannot work: layers\.\{{0-2\}}\.attn\.o: {why}$",
        r"^ 3 +refused *$",
        r"; works with tp=2, not with tp=3$",
    ):
        assert re.search(pattern, result.out, re.M), (pattern, result.out)
    data = json.loads(run(coverage, f"checkpoint={tiny}", "tp=[3,2]", "format=json").out)
    assert set(data) == {"2", "3", "overview"}
    two, three = data["overview"]["sizes"]
    assert (two["tp_size"], two["works"], two["imbalance"]) == (2, True, 1.0)
    assert two["max_rank_nbytes"] == max(data["2"]["rank_nbytes"])
    assert three["works"] is False and len(three["refusals"]) == 2
    assert data["overview"]["splits"]["column"].startswith("layers.{0-2}.attn.qkv")


def test_the_table_plans_one_of_the_ranks_that_are_alike(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    sizes = {"num_attention_heads": 6, "num_key_value_heads": 3, "hidden_size": 48}
    save_llama(tmp_path / "uneven", tokenizer=False, **sizes)
    at = f"checkpoint={tmp_path / 'uneven'}"
    planned = []
    assemble_rank = loading.assemble_rank

    def count(whole, tp):
        planned.append((tp.rank, tp.size))
        return assemble_rank(whole, tp)

    monkeypatch.setattr(loading, "assemble_rank", count)
    table = run(coverage, at, "tp=[2,3,6]").out
    assert planned == [(0, 2), (1, 2), (0, 3), (1, 3), (0, 6), (2, 6)]
    in_detail = json.loads(run(coverage, at, "tp=[2,3,6]", "format=json").out)
    for size in ("2", "3", "6"):  # what was not planned holds what was said
        nbytes = in_detail[size]["rank_nbytes"]
        shown = list(dict.fromkeys(map(format_bytes, (min(nbytes), max(nbytes)))))
        assert re.search(rf"^ {size} +yes +{' to '.join(shown)} ", table, re.M), (nbytes, table)


@pytest.mark.parametrize("case", FINDINGS)
def test_a_checkpoint_that_does_not_fit(case: str, run: Run, copy: Path):
    damage, message, summary = FINDINGS[case]
    damage(copy)
    result = run(coverage, f"checkpoint={copy}")
    assert (result.status, result.err) == (1, "")
    assert re.search(message, " ".join(result.out.split())), result.out
    last = result.out.splitlines()[-1]
    assert last == summary if summary else re.search(r": \d+ findings?$", last)
    # The same words end an attempt to generate.
    result = run(generate, f"checkpoint={copy}", "prompt=x")
    refused(result, r"does not fit the model \(weight map 'llama'\): \d+ findings?\n")
    assert re.search(message, " ".join(result.err.split())), result.err


def test_a_truncated_gguf(run: Run, tiny: Path, home: Path, tmp_path: Path):
    file = Path(shutil.copy(home / "tiny.gguf", tmp_path))
    size = file.stat().st_size
    cut(file, size - 100)
    result = run(coverage, f"checkpoint={file}")
    assert result.status == 1
    assert re.search(r"truncated: tiny\.gguf: the header describes", " ".join(result.out.split()))
    refused(run(generate, f"checkpoint={file}", "prompt=x"), r"truncated: tiny\.gguf: the header")
    cut(file, 1000)
    for command in (coverage, generate):
        arguments = ["prompt=x"] * (command is generate)
        refused(run(command, f"checkpoint={file}", *arguments), r"tiny\.gguf: .*ends")


@pytest.mark.parametrize("case", UNREADABLE)
def test_where_nothing_can_be_checked(case: str, run: Run, copy: Path):
    damage, message = UNREADABLE[case]
    damage(copy)
    refused(run(coverage, f"checkpoint={copy}"), message)
    refused(run(generate, f"checkpoint={copy}", "prompt=x"), message)


def test_what_only_generating_can_find(run: Run, copy: Path):
    (copy / "tokenizer.json").unlink()
    assert run(coverage, f"checkpoint={copy}").status == 0
    refused(run(generate, f"checkpoint={copy}", "prompt=x"), r"copy: no tokenizer\.json \(found ")
    assert run(generate, f"checkpoint={copy}", "prompt=1 2", "max_tokens=2").status == 0
    change_config(copy, tie_word_embeddings=True)
    assert run(coverage, f"checkpoint={copy}").status == 0
    refused(run(generate, f"checkpoint={copy}", "prompt=x"), r"tokenizer|lm_head")


def test_weights_that_are_not_numbers(run: Run, copy: Path):
    change_tensors(copy, lambda w: w["model.norm.weight"].fill_(float("nan")))
    result = run(generate, f"checkpoint={copy}", "prompt=x")
    assert (result.status, result.out) == (2, "\n")
    first, second = result.err.splitlines()
    assert first.endswith("0 generated tokens, no token generated, ended by 1 abort")
    assert second.startswith("error: ") and "not numbers (NaN or infinite)" in second


def test_wrong_options_of_coverage(run: Run):
    refused(run(coverage, "chekpoint=x"), r"unknown option 'chekpoint'\. Did you mean 'checkpoint'")
    refused(run(coverage, "format=xml"), r"format='xml': input should be 'table', 'json' or 'mark")
    refused(run(coverage), r"which model\? Pass checkpoint=FOLDER")
