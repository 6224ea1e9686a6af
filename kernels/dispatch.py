"""The attention backends: one interface, and the one place that chooses between them."""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from functools import partial
from importlib.util import find_spec
from typing import Literal, Protocol

import torch

from assembler.errors import OptionError, did_you_mean
from assembler.kernels.attention_options import AttentionOptions
from assembler.kernels.flash_attention import (
    AttentionUse,
    FlashAttention,
    device_problem,
    package_problem,
    refuse,
    use_refusals,
)
from assembler.kernels.paged_attention_torch import GatherBuffers, paged_attention_torch
from assembler.kernels.paged_batch import PagedBatch
from assembler.kernels.store_kv_torch import store_kv_torch

ASKED_FOR = "asked for"  # the reason of a backend that was named
BACKEND_NAMES = ("auto", "torch", "triton", "flash_attn")

TRITON_DTYPES = (torch.float32, torch.float16, torch.bfloat16)  # of queries
TRITON_CACHE_DTYPES = (*TRITON_DTYPES, torch.float8_e4m3fn)
TRITON_CAPABILITY = (8, 0)  # the oldest NVIDIA devices that Triton is made for

_log = logging.getLogger(__name__)


class AttentionBackend(Protocol):
    """How the attention blocks of a paged forward write and read KV memory."""

    name: str
    capturable: bool  # whether a CUDA graph can hold it: it reads no data on the host
    reason: str  # why it was chosen

    def store_kv(
        self,
        k: torch.Tensor,
        v: torch.Tensor | None,
        k_cache: torch.Tensor,
        v_cache: torch.Tensor | None,
        slot_mapping: torch.Tensor,
        k_scale: float = 1.0,
        v_scale: float = 1.0,
    ) -> None:
        """Write k [T, K, D] and v [T, K, Dv] at `slot_mapping` [T] (int64; -1: not stored).

        In a latent cache the values are a part of the keys: v and v_cache are None. Caches of
        float8 e4m3 hold k / k_scale and v / v_scale.
        """

    def attend(
        self,
        q: torch.Tensor,
        k_cache: torch.Tensor,
        v_cache: torch.Tensor | None,
        batch: PagedBatch,
        options: AttentionOptions,
    ) -> torch.Tensor:
        """Attention of q [T, H, D] over what the caches hold -> [T, H, Dv].

        In a latent cache v_cache is None, and `options.value_dim` is Dv.
        """


class TorchAttention:
    """Plain torch, on any device."""

    name = "torch"
    capturable = False
    reason = ""

    def __init__(self) -> None:
        self.store_kv = store_kv_torch
        self.attend = partial(paged_attention_torch, buffers=GatherBuffers())


class TritonAttention:
    """Triton kernels, on CUDA and HIP devices (or on a CPU in Triton's interpreter)."""

    name = "triton"
    capturable = True
    reason = ""

    def __init__(self) -> None:
        # Triton is imported by those who use it only: it is not there on every platform.
        from assembler.kernels.operations import attend, store_kv

        self.store_kv = store_kv
        self.attend = attend


def attention_backend(
    name: Literal["auto", "torch", "triton", "flash_attn"],
    device: torch.device | str,
    uses: Sequence[AttentionUse] = (),
) -> AttentionBackend:
    """The backend called `name` for tensors on `device`; its `reason` says why it is that one.

    "auto" is "triton" on CUDA and HIP devices where that computes all that is wanted, else
    "flash_attn" where that does, and "torch" elsewhere.

    Args:
        uses: what each attention block of the model wants of it.

    Raises:
        OptionError: an unknown name, or a backend that cannot run there or compute that.
    """
    if name not in BACKEND_NAMES:
        raise OptionError(
            f"attention backend '{name}' is unknown; there are {', '.join(BACKEND_NAMES)}."
            + did_you_mean(name, BACKEND_NAMES)
        )
    device = torch.device(device)
    reason = ASKED_FOR
    if name == "auto":
        name, reason = _choose(device, uses)
    backend = _make(name, device, uses)
    backend.reason = reason
    _log.info("attention backend: %s (%s)", name, reason)
    return backend


def _choose(device: torch.device, uses: Sequence[AttentionUse]) -> tuple[str, str]:
    """What "auto" is, and why."""
    if device.type != "cuda":  # HIP devices call themselves so too
        return "torch", f"auto: '{device}' is no CUDA or HIP device"
    problems = triton_problems(device, uses)
    if not problems:
        return "triton", f"auto: '{device}' is a CUDA or HIP device, and Triton computes everything"
    reason = f"auto: triton: {'; '.join(problems)}"
    problems = flash_problems(device, uses)
    if not problems:
        return "flash_attn", f"{reason}; flash_attn computes all of this"
    return "torch", f"{reason}; flash_attn: {'; '.join(problems)}"


def triton_problems(device: torch.device, uses: Sequence[AttentionUse]) -> list[str]:
    """Why our Triton kernels cannot run on `device` and compute `uses`; empty: they can."""
    problems = []
    if find_spec("triton") is None:
        problems.append("the package triton is not installed: run `pip install triton`")
    if device.type != "cuda":  # HIP devices call themselves so too
        if os.environ.get("TRITON_INTERPRET") != "1":
            problems.append(
                f"it needs a CUDA or HIP device, not '{device}'; set the environment variable "
                "TRITON_INTERPRET=1 before the start to run it (slowly) in Triton's interpreter"
            )
    elif torch.cuda.is_available() and not torch.version.hip:
        capability = torch.cuda.get_device_capability(device)
        if capability < TRITON_CAPABILITY:
            needed, found = (".".join(map(str, c)) for c in (TRITON_CAPABILITY, capability))
            problems.append(f"it needs compute capability {needed} or later, not {found}")
    for use in uses:
        if use.dtype not in TRITON_DTYPES:
            problems.append(f"dtype {_name(use.dtype)}: float32, float16 or bfloat16 only")
        elif use.cache_dtype not in TRITON_CACHE_DTYPES:
            problems.append(
                f"a cache of {_name(use.cache_dtype)}: float32, float16, bfloat16 or float8 e4m3"
            )
    return list(dict.fromkeys(problems))


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def flash_problems(device: torch.device, uses: Sequence[AttentionUse]) -> list[str]:
    """Why flash-attn cannot run on `device` and compute `uses`; empty: it can."""
    problems = [problem for problem in (device_problem(device), package_problem()) if problem]
    return problems + list(dict.fromkeys(reason for use in uses for reason in use_refusals(use)))


def _make(name: str, device: torch.device, uses: Sequence[AttentionUse]) -> AttentionBackend:
    """The backend of that name; raises `OptionError` where it cannot run."""
    if name == "torch":
        return TorchAttention()
    if name == "flash_attn":
        refuse(flash_problems(device, uses))
        return FlashAttention()
    if problems := triton_problems(device, uses):
        listed = "".join(f"\n  {problem}" for problem in problems)
        raise OptionError(
            f"attention backend 'triton' cannot run this:{listed}\n"
            "Take attention=torch, which runs everywhere, or attention=auto."
        )
    return TritonAttention()
