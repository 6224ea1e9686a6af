"""One table over several runs of a command: what is in it, in a terminal, as CSV, as a picture."""

import csv
import json
import re
from pathlib import Path

import pytest
from tiny_llama import save_llama

from assembler import bench, coverage, diff, generate, memory
from assembler.command_line import run_command
from assembler.multirun.runs import _flat
from assembler.multirun.table import text


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    save_llama(tmp_path / "model")
    return tmp_path / "model"


def run(command, *argv: str) -> int:
    with pytest.raises(SystemExit) as stop:
        run_command(command.main, ["-m", *argv])
    return stop.value.code


def rows(printed: str) -> list[list[str]]:
    """The cells of the table's rows, its header first."""
    lines = [line.strip() for line in printed.splitlines() if line.strip() and "──" not in line]
    return [re.split(r"\s{2,}", line) for line in lines]


def test_a_row_a_run_and_a_column_for_all_that_differs(folder: Path, capsys):
    assert run(memory, f"checkpoint={folder}", "gpu=1GB", "tp=1,2", "dtype=float32,bfloat16") == 0
    captured = capsys.readouterr()
    header, *body = rows(captured.out)
    assert header[:4] == ["tp", "dtype", "sizes.weights", "sizes.lightest"]
    assert "title" not in header and header[-1] == "status"  # alike in all of them
    assert [row[:2] for row in body] == [
        ["1", "float32"],
        ["1", "bfloat16"],
        ["2", "float32"],
        ["2", "bfloat16"],
    ]
    weights = [int(row[2].replace(",", "")) for row in body]
    assert weights[0] == 2 * weights[1] > weights[2] == 2 * weights[3]
    assert "[4/4] tp=2 dtype=bfloat16" in captured.err


def test_a_run_that_fails_is_a_row(folder: Path, capsys):
    assert run(memory, f"checkpoint={folder}", "tp=1,3", "dtype=float32,int8") == 2
    body = rows(capsys.readouterr().out)[1:]
    assert [row[-1] for row in body[:1]] == ["ok"]
    assert all("dtype='int8'" in row[-1] for row in (body[1], body[3]))
    assert "3 ranks cannot share" in body[2][-1]  # told by the command itself


def test_the_csv_has_everything(folder: Path, tmp_path: Path, capsys):
    file = tmp_path / "table.csv"
    run(memory, f"checkpoint={folder}", "gpu=1GB", "conf.layers.count=1,2,3", f"csv={file}")
    capsys.readouterr()
    with file.open(newline="") as opened:
        table = list(csv.DictReader(opened))
    assert [row["conf.layers.count"] for row in table] == ["1", "2", "3"]
    per_layer = [int(row["sizes.kv_per_token"]) for row in table]
    assert per_layer == [per_layer[0], 2 * per_layer[0], 3 * per_layer[0]]
    assert {row["dtype"] for row in table} == {"bfloat16"} and {row["status"] for row in table} == {
        "0"
    }


@pytest.mark.parametrize("name", ["plot.svg", "plot.png"])
def test_a_picture(name: str, folder: Path, tmp_path: Path, capsys):
    file = tmp_path / name
    arguments = ["tp=1,2", "conf.layers.count=range(1,4)", "columns=[sizes.weights,sizes.step]"]
    assert run(memory, f"checkpoint={folder}", *arguments, f"plot={file}") == 0
    header = rows(capsys.readouterr().out)[0]
    assert header == ["tp", "conf.layers.count", "sizes.weights", "sizes.step", "status"]
    content = file.read_bytes()
    if name.endswith("svg"):
        assert content.count(b'id="axes_') == 2 and b"<svg" in content
    else:
        assert content.startswith(b"\x89PNG")


def test_other_commands(folder: Path, capsys):
    assert run(diff, "conf=qwen3,llama", "other=llama") == 1
    header, *body = rows(capsys.readouterr().out)
    assert header == ["conf", "blocks", "weights", "same", "status"]
    assert body[1] == ["llama", "0", "0", "yes", "ok"]
    assert run(coverage, f"checkpoint={folder}", "conf.layers.count=1,3") == 0
    assert rows(capsys.readouterr().out)[0][0] == "conf.layers.count"
    arguments = [f"checkpoint={folder}", "prompt=One, two", "max_tokens=1,2", "ignore_eos=true"]
    assert run(generate, *arguments, "chat=false") == 0
    assert rows(capsys.readouterr().out)[0] == ["max_tokens", "output", "status"]


def test_bench_measures_every_run(folder: Path, capsys):
    small = [
        "rounds=1",
        "requests=1",
        "input_len=4",
        "output_len=2",
        "decode_len=2",
        "prefill_len=4",
        "kernels=false",
    ]
    arguments = [f"checkpoint={folder}", *small, "enforce_eager=true,false"]
    assert run(bench, *arguments, "columns=['decode 2, 1 request.tokens_per_s']") == 0
    body = rows(capsys.readouterr().out)[1:]
    assert len(body) == 2 and all(float(row[1].replace(",", "")) > 0 for row in body)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["tp=1"], "sweeps over values"),
        (["tp=1,2", "columns=[sizes.weight]"], "no run has 'sizes.weight'"),
        (["tp=1,2", "plot=x.gif"], ".svg, .png"),
        (["tp=1,2", "csv=/nowhere/x.csv"], "csv=/nowhere/x.csv: cannot be written"),
        (["tp=1,2", "columns=[title]", "plot=x.svg"], "no column that differs is a number"),
    ],
)
def test_what_cannot_be_shown(arguments: list[str], message: str, folder: Path, capsys):
    assert run(memory, f"checkpoint={folder}", *arguments) == 2
    assert message in capsys.readouterr().err


def test_a_csv_in_no_folder_is_refused_before_the_runs(folder: Path, tmp_path: Path, capsys):
    for file in (tmp_path / "none" / "x.csv", tmp_path):
        assert run(memory, f"checkpoint={folder}", "tp=1,2", f"csv={file}") == 2
        said = capsys.readouterr()
        assert f"csv={file}: cannot be written" in said.err and "[1/2]" not in said.err


def test_json_becomes_columns():
    data = json.loads(
        '{"a": 1, "b": [{"n": 2}], "c": [{"n": 2}, {"n": 3}], "d": [{"t": "x"}], "e": null}'
    )
    assert dict(_flat(data)) == {"a": 1, "b.n": 2, "c": 2, "d": 1, "e": None}
    assert [text(v) for v in (1234, True, None, 0.000123)] == ["1,234", "yes", "–", "0.000123"]
