"""The package flash-attn as an attention backend (FlashAttention-2: Dao, 2023; paged since 2.5).

It reads the same pages by the same tables as our own kernels. What it does not compute is refused,
with the reason, when a model is put on it: nothing is left out silently.

Shapes: T tokens of the step, S sequences, H query heads, K key/value heads, D head_dim.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec

import torch
from torch.nn import functional as F

from assembler.errors import OptionError
from assembler.kernels.attention_options import AttentionOptions
from assembler.kernels.paged_batch import PagedBatch
from assembler.kernels.store_kv_torch import store_kv_torch

PAGE_SIZE_MULTIPLE = 256  # of the published package, whose kernels read a page as one block
MAX_HEAD_DIM = 256
OLDEST = (2, 6)  # the first with block_table, softcap and alibi_slopes together


@dataclass(frozen=True, eq=False)
class AttentionUse:
    """What one attention block of a model asks of a backend."""

    options: AttentionOptions
    head_dim: int
    value_dim: int
    latent: bool
    dtype: torch.dtype  # of queries
    cache_dtype: torch.dtype
    page_size: int


class FlashAttention:
    """flash-attn on a CUDA device: one call for a mixed step, another one for decodes."""

    name = "flash_attn"
    reason = ""

    def __init__(self) -> None:
        """Raises OptionError without the package."""
        missing = package_problem()
        if missing is not None:
            raise OptionError(f"attention backend 'flash_attn': {missing}")
        import flash_attn as package

        self._varlen: Callable[..., torch.Tensor] = package.flash_attn_varlen_func
        self._with_cache: Callable[..., torch.Tensor] = package.flash_attn_with_kvcache
        self.store_kv = store_kv_torch
        self.capturable = find_spec("triton") is not None
        if self.capturable:  # without a look at the slots from the host
            from assembler.kernels.operations import store_kv

            self.store_kv = store_kv

    def attend(
        self,
        q: torch.Tensor,
        k_cache: torch.Tensor,
        v_cache: torch.Tensor | None,
        batch: PagedBatch,
        options: AttentionOptions,
    ) -> torch.Tensor:
        """Causal attention of q [T, H, D] over pages [P, page_size, K, D] -> [T, H, D].

        Raises:
            OptionError: `options` ask for something that the package does not compute.
        """
        if refused := option_refusals(options):
            raise OptionError(_refusal(refused))
        slopes = options.alibi_slopes
        shared = {
            "softmax_scale": options.scale,
            "causal": True,
            "window_size": (-1, -1) if options.window is None else (options.window - 1, 0),
            "softcap": options.softcap or 0.0,
            "alibi_slopes": None if slopes is None else slopes.float(),
            "block_table": batch.page_table,
        }
        if batch.is_decode:
            heads = q.unsqueeze(1)  # [S, 1, H, D]
            lengths = batch.context_lens
            return self._with_cache(
                heads, k_cache, v_cache, cache_seqlens=lengths, **shared
            ).squeeze(1)
        return self._varlen(
            q,
            k_cache,
            v_cache,
            cu_seqlens_q=batch.cu_seqlens_q,
            cu_seqlens_k=batch.once(FlashAttention, lambda: _prefix_sums(batch.context_lens)),
            max_seqlen_q=batch.max_seqlen_q,
            max_seqlen_k=batch.max_context_len,
            **shared,
        )


def _prefix_sums(lengths: torch.Tensor) -> torch.Tensor:
    """[S] -> [S + 1] int32, from 0 on."""
    return F.pad(lengths.cumsum(0, dtype=torch.int32), (1, 0))


def package_problem() -> str | None:
    """Why the package cannot be used; None: it can."""
    if find_spec("flash_attn") is None:
        return (
            "the package flash-attn is not installed: run `pip install model-assembler[flash]` "
            "(it compiles itself, which needs a CUDA toolkit)"
        )
    try:
        import flash_attn as package

        found = package.__version__
        package.flash_attn_varlen_func, package.flash_attn_with_kvcache  # noqa: B018
    except (ImportError, AttributeError) as error:
        return f"the package flash-attn cannot be used: {error}; install it anew for this torch"
    if tuple(int(part) for part in found.split(".")[:2]) < OLDEST:
        return f"flash-attn {found} is too old: 2.6 or later is needed"
    return None


def device_problem(device: torch.device) -> str | None:
    """Why the package does not run on `device`; None: it does."""
    if device.type != "cuda":  # HIP devices call themselves so too
        return f"it needs a CUDA or HIP device, not '{device}'"
    if torch.cuda.is_available() and not torch.version.hip:
        major, minor = torch.cuda.get_device_capability(device)
        if major < 8:
            return f"it needs compute capability 8.0 (Ampere) or later, not {major}.{minor}"
    return None


def option_refusals(options: AttentionOptions) -> list[str]:
    """What of `options` the package does not compute."""
    asked = {
        "attention sinks": options.sinks is not None,
        "chunk masks": options.chunk is not None,
        "ALiBi rounded to bfloat16": options.alibi_rounded,
        "latent attention": options.value_dim is not None,
        "scales of an 8-bit cache": (options.k_scale, options.v_scale) != (1.0, 1.0),
    }
    return [f"{feature}: not computed" for feature, there in asked.items() if there]


def use_refusals(use: AttentionUse) -> list[str]:
    """Why a model that uses attention so cannot run on the package; empty: it can."""
    reasons = option_refusals(use.options)
    if use.latent and use.options.value_dim is None:
        reasons.append("latent attention: not computed")
    if use.value_dim != use.head_dim and not use.latent:
        reasons.append(f"values of {use.value_dim} beside keys of {use.head_dim}: must be equal")
    if use.head_dim > MAX_HEAD_DIM or use.head_dim % 8:
        reasons.append(f"head_dim {use.head_dim}: at most {MAX_HEAD_DIM}, and a multiple of 8")
    if use.dtype not in (torch.float16, torch.bfloat16):
        reasons.append(f"dtype {_name(use.dtype)}: float16 or bfloat16 only")
    elif use.cache_dtype != use.dtype:
        reasons.append(f"a cache of {_name(use.cache_dtype)}: must be {_name(use.dtype)}")
    if use.page_size % PAGE_SIZE_MULTIPLE:
        reasons.append(f"page_size {use.page_size}: must be a multiple of {PAGE_SIZE_MULTIPLE}")
    return reasons


def refuse(reasons: list[str]) -> None:
    """Raise `OptionError` with all `reasons`, if there are any."""
    if reasons:
        raise OptionError(_refusal(reasons))


def _refusal(reasons: list[str]) -> str:
    listed = "".join(f"\n  {reason}" for reason in reasons)
    return (
        f"attention backend 'flash_attn' cannot run this:{listed}\n"
        "Take attention=triton, which computes it all, or attention=auto."
    )


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
