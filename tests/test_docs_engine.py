"""docs/engine.md: its examples run, and its table lists the options."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from docs_engine import PAGE, with_options
from tiny_llama import save_llama

EXAMPLES = re.findall(r"```python\n(.*?)```", PAGE.read_text("utf-8"), re.S)


@pytest.mark.parametrize("number", range(len(EXAMPLES)))
def test_an_example_runs(number: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    save_llama(tmp_path)
    exec(EXAMPLES[number].replace("path/to/model", str(tmp_path)), {"__name__": "__main__"})
    assert capsys.readouterr().out


def test_the_options_are_those_of_llm():
    """Refresh with `python tests/docs_engine.py`."""
    page = PAGE.read_text("utf-8")
    assert page == with_options(page)
