"""What `--help` promises, and how a wrong option is named."""

from __future__ import annotations

import re

import pytest
from command_runs import Run, refused

from assembler import coverage, explain, export, generate
from assembler.command_line import run_command


def help_of(command, capsys: pytest.CaptureFixture[str]) -> str:
    with pytest.raises(SystemExit) as stop:
        run_command(command.main, ["--help"])
    assert stop.value.code == 0
    return capsys.readouterr().out


def test_generate_shows_the_defaults_it_has(capsys: pytest.CaptureFixture[str]):
    text = help_of(generate, capsys)
    assert re.search(r"^  temperature=0\.0 ", text, re.M)
    assert re.search(r"^  max_tokens=256 ", text, re.M)
    assert re.search(r"^  top_p=1\.0 ", text, re.M)


def test_export_says_that_it_takes_no_overrides(capsys: pytest.CaptureFixture[str], run: Run):
    text = help_of(export, capsys)
    assert "overrides of the model (conf.layers.count=2, ...) are refused" in text
    refused(run(export, "out=x", "conf.layers.count=2"), "writes the checkpoint as it is")


@pytest.mark.parametrize("command", [coverage, explain])
def test_checking_commands_name_their_options(command, capsys: pytest.CaptureFixture[str]):
    text = help_of(command, capsys)
    for key in ("checkpoint=null", "conf=null", "tp=", "format="):
        assert re.search(rf"^  {key}", text, re.M), (key, text)


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("chat=maybe", "chat='maybe': should be true or false or 'auto'"),
        ("mmap=7", "mmap='7': should be true or false or 'auto'"),
        ("tp=x", "tp='x': input should be a valid integer"),
        ("temperature=-1", "temperature=-1: input should be greater than or equal to 0"),
        ("stop_token_ids=[1,a]", "stop_token_ids[1]='a': input should be a valid integer"),
    ],
)
def test_a_wrong_value_is_told_in_terms_of_the_command_line(argument: str, message: str, run: Run):
    result = run(generate, "conf=smollm2", "prompt=x", argument)
    assert (result.status, result.err) == (2, f"error: {message}\n")
