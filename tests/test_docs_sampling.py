"""docs/sampling.md: its table is that of the code, its example runs, its claims hold."""

from __future__ import annotations

import contextlib
import io
import re
from pathlib import Path

import pytest
from docs_sampling import PAGE, page_with
from tiny_llama import save_llama

from assembler import SamplingParams
from assembler.engine.options import EngineOptions
from assembler.generation_config import recommended_params


def test_the_table_is_that_of_the_code():
    text = PAGE.read_text("utf-8")
    assert text == page_with(text), "run: python tests/docs_sampling.py"
    assert all(f"| `{name}` |" in text for name in SamplingParams.model_fields)


def test_every_name_in_the_text_exists():
    """Words in backquotes that look like fields are fields, outputs or file keys."""
    text = PAGE.read_text("utf-8")
    known = {
        *SamplingParams.model_fields,
        *("text", "token_ids", "finish_reason", "stop_reason", "cumulative_logprob"),
        *("decoded_token", "do_sample", "eos_token_id", "max_new_tokens"),
        *("with_", "max_logprobs"),
    }
    assert hasattr(SamplingParams, "with_") and "max_logprobs" in EngineOptions.model_fields
    named = set(re.findall(r"`([a-z_]+)`", text))
    assert named <= known, named - known


def test_the_example_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    save_llama(tmp_path / "path" / "to" / "checkpoint")
    monkeypatch.chdir(tmp_path)
    [code] = re.findall(r"```python\n(.*?)```", PAGE.read_text("utf-8"), re.S)
    with contextlib.redirect_stdout(io.StringIO()) as out:
        exec(compile(code, "sampling.md", "exec"), {})
    assert len(re.findall(r"(length|stop) -\d+\.\d+\n", out.getvalue())) == 2


def test_a_file_without_a_temperature_is_not_greedy(tmp_path: Path):
    (tmp_path / "generation_config.json").write_text('{"do_sample": false}')
    assert recommended_params(tmp_path).temperature == 1.0
