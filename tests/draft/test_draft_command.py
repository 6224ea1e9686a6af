"""python -m assembler.draft: its words, its files, its exit status, and what it refuses."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch
import yaml
from conftest import Drafting
from invented_checkpoints import HEAD_DIM, HEADS, HIDDEN, KV_HEADS, write_checkpoint
from safetensors.torch import save_file

import assembler
from assembler import draft as command
from assembler.command_line import run_command
from assembler.drafting import drafting
from assembler.errors import AssemblerError, CheckpointError, OptionError

ROWS = (HEADS + 2 * KV_HEADS) * HEAD_DIM
SHOWN = {  # of the page's example
    **dict.fromkeys(("attn.wq.weight", "attn.wk.weight", "attn.wv.weight")),
    "attn.wqkv.weight": (ROWS, HIDDEN),
    "attn.wqkv.bias": (ROWS,),
}


def test_guesses_are_marked_and_the_rest_is_listed(draft: Drafting) -> None:
    drafted = draft({"zork": 7}, {"attn.sinks": (HEADS,), "strange.weight": (3, 5)})
    assert "#   zork: 7\n" in drafted.text
    assert drafted.report.unplaced == ("zork",)
    (line,) = [line for line in drafted.text.splitlines() if "sinks: true" in line]
    assert line.endswith("# guess: the tensors show it")
    for where, why in drafted.report.guesses:
        if where.startswith("conf "):
            assert f"# guess: {why}" in drafted.text, where
    assert drafted.report.unknown == ("blocks.{i}.strange.weight",)
    assert "blocks.{i}.strange.weight" in drafted.report.weight_map.read_text()
    assert not drafted.report.complete and "strange" in drafted.report.findings[0]


def test_a_draft_is_loaded_like_any_other_conf(draft: Drafting, tmp_path: Path) -> None:
    report = draft({}, None, None).report
    model = assembler.load_model(
        tmp_path / "checkpoint", report.conf, search_path=[tmp_path / "out"]
    )
    assert assembler.logits(model, torch.tensor([[1, 2, 3]])).shape == (1, 3, 101)
    found = assembler.load_model(tmp_path / "checkpoint", search_path=[tmp_path / "out"])
    assert found.spec.name == "heron"  # by what it matches


def test_the_same_checkpoint_gives_the_same_draft(
    draft: Drafting, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(drafting, "CANDIDATES", 2)
    first = draft(parent=None)
    second = draft(parent=None)
    assert first.text == second.text and first.weights == second.weights
    assert first.report == second.report


def test_the_draft_that_the_page_shows(draft: Drafting) -> None:
    page = (Path(__file__).parents[2] / "docs" / "draft.md").read_text()
    conf, weights = re.findall(r"```yaml\n(.*?)```", page, re.DOTALL)
    drafted = draft({"logit_cap": 30.0, "zork": 7}, SHOWN)
    written = [line for line in drafted.text.splitlines() if not line.startswith("checkpoint:")]
    assert conf.splitlines() == written
    assert weights == drafted.report.weight_map.read_text()


def run(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as stop:
        run_command(command.main, [str(argument) for argument in arguments])
    shown = capsys.readouterr()
    return int(stop.value.code or 0), shown.out, shown.err


def test_the_report(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    checkpoint = write_checkpoint(tmp_path / "ck")
    options = (f"checkpoint={checkpoint}", f"out={tmp_path}", "parent=llama")
    status, out, _ = run(capsys, *options)
    assert status == 0
    assert "coverage: 21/21 tensors, 15/15 parameters" in out
    assert f"next: python -m assembler.verify conf=heron checkpoint={checkpoint} hydra" in out
    status, _, err = run(capsys, *options)
    assert status == 2 and "there already" in err and "force=true" in err
    status, out, _ = run(capsys, *options, "force=true", "format=json")
    assert status == 0 and json.loads(out)["complete"] is True


def test_paths_that_hold_from_any_folder(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint = write_checkpoint(tmp_path / "ck")
    monkeypatch.chdir(tmp_path)
    run(capsys, "checkpoint=ck", "out=mine", "parent=gpt2")
    assert f"checkpoint: {checkpoint}" in (tmp_path / "mine/conf/heron.yaml").read_text()
    _, out, _ = run(capsys, "checkpoint=ck", "out=mine", "parent=opt", "force=true")
    assert "assembler-draft-" not in out  # the folder of the attempts, which has gone


def test_wrong_options(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    checkpoint = f"checkpoint={write_checkpoint(tmp_path / 'ck')}"
    assert "which checkpoint" in run(capsys, f"out={tmp_path}")[2]
    assert "begins with a letter" in run(capsys, checkpoint, "name=../x")[2]
    assert "Did you mean 'llama'" in run(capsys, checkpoint, "parent=lama")[2]
    assert "has no overrides" in run(capsys, checkpoint, "conf.layers.count=2")[2]
    blocked = tmp_path / "file"
    blocked.write_text("")
    assert "cannot be written" in run(capsys, checkpoint, f"out={blocked}", "parent=llama")[2]
    status, out, _ = run(capsys, "--help")
    assert status == 0 and "checkpoint=null" in out


def test_a_name_of_the_draft_that_a_shipped_conf_has(tmp_path: Path) -> None:
    checkpoint = write_checkpoint(tmp_path / "ck", {"model_type": "llama"})
    report = assembler.draft_architecture(checkpoint, tmp_path, parent="llama")
    assert report.name == "llama_draft"
    with pytest.raises(OptionError, match="ships by that name"):
        assembler.draft_architecture(checkpoint, tmp_path, "llama")


def test_a_model_that_a_conf_is_for_already(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint = write_checkpoint(tmp_path / "ck")
    monkeypatch.chdir(tmp_path)
    options = (f"checkpoint={checkpoint}", "parent=llama")
    assert "matches:\n  arch" in _conf_of(run(capsys, *options), tmp_path / "conf/heron.yaml")
    status, out, _ = run(capsys, *options)
    text = (tmp_path / "conf/heron_draft.yaml").read_text()
    assert status == 0 and "conf/heron.yaml:" in out and "pass conf=heron_draft" in out
    assert "matches" not in yaml.safe_load(text)
    assert "# matches:\n#   architectures: [HeronForCausalLM]\n" in text
    assert assembler.load_model(checkpoint).spec.name == "heron"  # the first one, still found
    again = (*options, "name=heron", "force=true")  # a draft is not in its own way
    (tmp_path / "conf/heron_draft.yaml").unlink()
    assert "matches:\n  arch" in _conf_of(run(capsys, *again), tmp_path / "conf/heron.yaml")


def _conf_of(ran: tuple[int, str, str], path: Path) -> str:
    status, out, _ = ran
    assert status == 0 and "already" not in out
    return path.read_text()


def test_a_file_that_ends_too_early(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def truncated(name: str, config: dict[str, str] | None = None) -> Path:
        folder = write_checkpoint(tmp_path / name, config)
        file = folder / "model.safetensors"
        file.write_bytes(file.read_bytes()[:-40])
        return folder

    options = (f"out={tmp_path}", "parent=llama", "name=x", "force=true")
    status, out, _ = run(capsys, f"checkpoint={truncated('whole')}", *options)
    assert status == 1 and "truncated: model.safetensors" in out
    unbuilt = truncated("unbuilt", {"hidden_act": "nonsense"})
    status, out, _ = run(capsys, f"checkpoint={unbuilt}", *options)
    assert status == 1 and "left to do: 2" in out and "truncated: model.safetensors" in out


def test_checkpoints_that_no_draft_can_be_made_of(tmp_path: Path) -> None:
    def refused(folder: Path, words: str) -> None:
        with pytest.raises(AssemblerError, match=words):
            assembler.draft_architecture(folder, tmp_path / "out")
        assert not (tmp_path / "out").exists()

    bare = write_checkpoint(tmp_path / "bare")
    (bare / "config.json").unlink()
    refused(bare, "there is no config.json")
    empty = write_checkpoint(tmp_path / "empty")
    (empty / "model.safetensors").unlink()
    refused(empty, "safetensors")
    refused(tmp_path / "nowhere", "no such")
    quantised = {"quantization_config": {"quant_method": "gptq"}}
    refused(write_checkpoint(tmp_path / "quantised", quantised), "is quantised")
    flat = tmp_path / "flat"
    flat.mkdir()
    save_file({"alpha": torch.zeros(2)}, flat / "model.safetensors")
    (flat / "config.json").write_text('{"model_type": "x"}')
    refused(flat, "no tensors of layers")


def test_gguf_is_refused_with_the_reason(tmp_path: Path) -> None:
    gguf = pytest.importorskip("gguf")
    file = tmp_path / "model.gguf"
    writer = gguf.GGUFWriter(file, "llama")
    writer.add_tensor("token_embd.weight", torch.zeros(4, 32).numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with pytest.raises(CheckpointError, match="GGUF has names of its own"):
        assembler.draft_architecture(file, tmp_path)


def test_where_nothing_is_near_it_says_so(tmp_path: Path) -> None:
    folder = tmp_path / "ck"
    folder.mkdir()
    save_file({f"a.{i}.foo": torch.zeros(3, 5) for i in range(3)}, folder / "model.safetensors")
    (folder / "config.json").write_text('{"model_type": "x"}')
    report = assembler.draft_architecture(folder, tmp_path / "out")
    assert not report.near and not report.complete
    assert report.unknown == ("a.{i}.foo",)
    assert "It does not build yet" in report.conf.read_text()
