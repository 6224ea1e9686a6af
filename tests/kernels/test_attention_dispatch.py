"""Which backend a name and a device give, and the errors for those that cannot run."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch

from assembler.errors import OptionError
from assembler.kernels import dispatch
from assembler.kernels.attention_options import AttentionOptions
from assembler.kernels.dispatch import attention_backend, triton_problems
from assembler.kernels.flash_attention import AttentionUse
from assembler.kernels.fp8 import E4M3


def use(dtype: torch.dtype, cache_dtype: torch.dtype | None = None) -> AttentionUse:
    options = AttentionOptions(1.0)
    return AttentionUse(options, 64, 64, False, dtype, cache_dtype or dtype, page_size=16)


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
    with pytest.raises(OptionError, match=r"(?s)'cpu'.*TRITON_INTERPRET=1.*attention=torch"):
        attention_backend("triton", "cpu")


def test_without_triton_auto_is_torch_and_triton_an_error(monkeypatch):
    monkeypatch.setattr(dispatch, "find_spec", lambda name: None)
    backend = attention_backend("auto", "cuda")
    assert backend.name == "torch"
    assert backend.reason.startswith("auto: triton: the package triton is not installed")
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


def test_auto_is_torch_for_numbers_that_no_kernel_takes():
    backend = attention_backend("auto", "cuda", [use(torch.bfloat16), use(torch.float64)])
    assert backend.name == "torch"
    assert "triton: dtype float64: float32, float16 or bfloat16 only; flash_attn" in backend.reason
    for name in ("triton", "flash_attn"):
        with pytest.raises(OptionError, match=r"(?s)cannot run this.*dtype float64.*=auto"):
            attention_backend(name, "cuda", [use(torch.float64)])


def test_auto_is_triton_for_all_that_its_kernels_take():
    dtypes = (torch.float32, torch.float16, torch.bfloat16)
    uses = [use(dtype, cache) for dtype in dtypes for cache in (None, E4M3)]
    assert attention_backend("auto", "cuda", uses).name == "triton"


def test_what_triton_takes_is_what_its_launcher_knows():
    from assembler.kernels.paged_attention_triton import OPERANDS

    assert set(dispatch.TRITON_DTYPES) == OPERANDS.keys()


def test_old_devices_and_other_caches_are_named(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (7, 5))
    uses = [use(torch.float16, torch.float8_e5m2)] * 2
    assert triton_problems(torch.device("cuda"), uses) == [
        "it needs compute capability 8.0 or later, not 7.5",
        "a cache of float8_e5m2: float32, float16, bfloat16 or float8 e4m3",
    ]
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (10, 0))
    assert triton_problems(torch.device("cuda"), []) == []
