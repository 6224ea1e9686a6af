"""`python -m assembler.show` and `assembler.show_model`: what they take, write and refuse."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest
from sparse_releases import write_release

import assembler
from assembler import show
from assembler.command_line import run_command
from assembler.showing.formats import format_of

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_release("llama-3.2-1b", tmp_path_factory.mktemp("releases") / "llama")


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Runs the command in an empty folder: (exit status, stdout, stderr)."""
    monkeypatch.chdir(tmp_path)

    def call(*argv: str) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as stop:
            run_command(show.main, argv)
        return (stop.value.code, *capsys.readouterr())

    return call


def test_the_tree_is_what_comes_without_a_format(run: Run, llama: Path) -> None:
    status, out, err = run(f"checkpoint={llama}")
    assert (status, err) == (0, "")
    assert out.startswith("llama  conf llama\n1.24 B parameters, 16 layers of width 2048, 2.5 GB")
    assert out.endswith("146/146 tensors, 100 % of bytes, 98/98 parameters\n")


@pytest.mark.parametrize(
    ("out", "begins"),
    [
        ("model.html", "<!doctype html>"),
        ("model.svg", "<svg xmlns="),
        ("model.mmd", "flowchart TD"),
        ("model.json", "{"),
        ("model.txt", "llama  conf llama"),
    ],
)
def test_the_ending_says_the_format(run: Run, llama: Path, out: str, begins: str) -> None:
    assert run(f"checkpoint={llama}", f"out={out}") == (0, "", f"wrote {out}\n")
    written = Path(out).read_text("utf-8")
    assert written.startswith(begins)
    assert written == assembler.show_model(llama).text(format_of(out))


def test_formats_go_to_the_terminal_too(run: Run, llama: Path) -> None:
    status, out, _ = run(f"checkpoint={llama}", "format=json", "conf.layers.count=2", "tp=2")
    data = json.loads(out)
    assert status == 0 and data["layer_kinds"] == ["layer", "layer"] and data["tp_size"] == 2
    assert data["rank_numels"][0] < data["parameters"]
    assert any("leaves these layers out" in why for _, why in data["checkpoint"]["ignored"])


def test_a_config_alone(run: Run, llama: Path, tmp_path: Path) -> None:
    config = tmp_path / "config.json"
    config.write_text((llama / "config.json").read_text())
    for checkpoint in (config, tmp_path):
        status, out, _ = run(f"checkpoint={checkpoint}")
        assert status == 0 and "no tensors on disk: the config alone was read" in out
        assert out.startswith(f"{tmp_path.name}  conf llama\n1.24 B parameters")
    picture = assembler.show_model(config)
    page = picture.text("html")
    assert 'id="tensors"' not in page and "on disk</dt>" not in page
    qkv = picture.view.kinds[0].blocks[1].weights[0]
    rule = "layers.{i}.attn.qkv ← model.layers.{i}.self_attn.q_proj, model.layers.{i}.self_attn.k_"
    assert qkv.links == () and qkv.rule.startswith(rule)
    assert re.search(r"llama\.yaml:\d+$", qkv.rule_at) and rule in page


def test_a_config_alone_with_a_conf_and_a_map_of_ones_own(llama: Path, tmp_path: Path) -> None:
    (tmp_path / "own.yaml").write_text("defaults: [llama, _self_]\nweight_map: ./map.yaml\n")
    (tmp_path / "map.yaml").write_text("extends: llama\nweights: {norm: last_norm}\n")
    view = assembler.show_model(llama / "config.json", tmp_path / "own.yaml").view
    (norm,) = (block for block in view.model.blocks if block.name == "norm")
    assert norm.weights[0].rule == "norm ← last_norm"


def test_what_is_wrong_is_shown(run: Run, llama: Path, tmp_path: Path) -> None:
    status, out, _ = run(f"checkpoint={llama}", "tp=12")
    assert status == 1 and "tp=12 cannot work: " in out and "'k' has 8 units" in out
    config = json.loads((llama / "config.json").read_text())
    wrong = tmp_path / "wrong"
    wrong.mkdir()
    (wrong / "model.safetensors").symlink_to(llama / "model.safetensors")
    (wrong / "config.json").write_text(json.dumps({**config, "intermediate_size": 4096}))
    status, out, _ = run(f"checkpoint={wrong}")
    assert status == 1 and "shape: " in out
    assert 'class="finding"' in assembler.show_model(wrong).text("html")


def test_refusals(run: Run, llama: Path) -> None:
    def refused(*argv: str) -> str:
        status, out, err = run(*argv)
        assert (status, out) == (2, "") and err.startswith("error: ")
        return err

    assert "out=model.pdf: what is it to be?" in refused(f"checkpoint={llama}", "out=model.pdf")
    assert "cannot be written" in refused(f"checkpoint={llama}", "out=none/model.html")
    both = refused(f"checkpoint={llama}", "format=svg", "out=x.html")
    assert "format=svg contradicts out=x.html, which is html" in both
    assert "format='png'" in refused(f"checkpoint={llama}", "format=png")
    assert "which model?" in refused()
    assert "tp=0" in refused(f"checkpoint={llama}", "tp=0")


def test_a_conf_whose_checkpoint_is_out_of_reach_says_what_is_enough(
    run: Run, tmp_path: Path
) -> None:
    conf = tmp_path / "own.yaml"
    conf.write_text("defaults: [llama, _self_]\ncheckpoint: ./nowhere\nweight_map: llama\n")
    status, _, err = run("conf=./own.yaml")
    assert status == 2 and "a config.json alone is enough: checkpoint=path/to/config.json" in err


def test_a_picture_in_python(llama: Path, tmp_path: Path, capsys) -> None:
    picture = assembler.show_model(llama, tp=2)
    assert picture.complete and picture._repr_html_().startswith("<svg ")
    picture.save(tmp_path / "picture.svg")
    assert (tmp_path / "picture.svg").read_text("utf-8") == picture.text("svg")
    picture.print()
    assert capsys.readouterr().out.rstrip("\n") == picture.text("tree").rstrip("\n")


@pytest.mark.slow
def test_a_release_of_ninety_thousand_tensors(run: Run, tmp_path: Path) -> None:
    """DeepSeek-V3: folded, it is no larger than any other."""
    folder = write_release("deepseek-v3", tmp_path / "deepseek")
    status, _, _ = run(f"checkpoint={folder}", "out=model.html", "tp=8")
    page = Path("model.html").read_text("utf-8")
    assert status == 0 and len(page) < 300_000 and "91,991 tensors on disk" in page


def test_ranks_that_hold_more_than_others(run: Run, llama: Path) -> None:
    status, out, _ = run(f"checkpoint={llama}", "tp=3")
    assert status == 0 and "768 × 2048 to 1152 × 2048 (column)" in out
    assert re.search(r"^parameters of the 3 ranks: \d+ M, \d+ M, \d+ M$", out, re.M)
