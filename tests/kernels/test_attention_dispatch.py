"""Which backend a name and a device give, and the errors for those that cannot run."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch

from assembler.errors import OptionError
from assembler.kernels import dispatch
from assembler.kernels.dispatch import attention_backend


@pytest.mark.parametrize(
    ("name", "device", "got"),
    [
        ("auto", "cpu", "torch"),
        ("auto", torch.device("mps"), "torch"),
        ("auto", "cuda", "triton"),
        ("auto", torch.device("cuda", 1), "triton"),
        ("torch", "cuda", "torch"),
        ("triton", "cuda:0", "triton"),
        ("triton", "cpu", "triton"),  # the tests run in Triton's interpreter
    ],
)
def test_choice(name, device, got):
    assert attention_backend(name, device).name == got


def test_unknown_name_gets_the_nearest():
    with pytest.raises(OptionError, match=r"'trition' is unknown.*Did you mean 'triton'\?"):
        attention_backend("trition", "cpu")


def test_triton_on_a_cpu_says_what_to_do(monkeypatch):
    monkeypatch.delenv("TRITON_INTERPRET")
    with pytest.raises(OptionError, match=r"'cpu'.*backend 'torch'.*TRITON_INTERPRET=1"):
        attention_backend("triton", "cpu")


def test_without_triton_auto_is_torch_and_triton_an_error(monkeypatch):
    monkeypatch.setattr(dispatch, "find_spec", lambda name: None)
    assert attention_backend("auto", "cuda").name == "torch"
    with pytest.raises(OptionError, match="pip install triton"):
        attention_backend("triton", "cuda")


def test_the_torch_backend_imports_no_triton():
    code = (
        "import sys; sys.modules['triton'] = None\n"
        "from assembler.kernels.dispatch import TorchAttention\n"
        "TorchAttention()"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
