"""The memory behind the pages: what one page takes, how many fit a budget, and their tensors."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from assembler.blocks.context import CacheSpec
from assembler.engine.host_memory import host_memory, resident_bytes
from assembler.errors import OptionError
from assembler.kernels.attention_options import AttentionOptions
from assembler.kernels.flash_attention import AttentionUse

# Keys [P, page_size, K, D] and values [P, page_size, K, Dv]; no values in a latent cache.
KVCache = tuple[torch.Tensor, torch.Tensor | None]

_GPU_SHARE = 0.9  # of the memory that is free once the weights are there
_HOST_SHARE = 0.25  # of the memory, which other programs use too


def cache_specs(model: nn.Module) -> list[CacheSpec]:
    """What each attention block of `model` caches, in the order of `cache_index`."""
    return [block.cache_spec() for block in _attention_blocks(model)]


def _attention_blocks(model: nn.Module) -> list[nn.Module]:
    """Those that cache, in the order of `cache_index`."""
    blocks = [m for m in model.modules() if hasattr(m, "cache_spec") and hasattr(m, "cache_index")]
    blocks.sort(key=lambda block: block.cache_index)
    assert [block.cache_index for block in blocks] == list(range(len(blocks)))
    return blocks


def attention_uses(
    model: nn.Module, dtype: torch.dtype, cache_dtype: torch.dtype, page_size: int
) -> list[AttentionUse]:
    """What each attention block of `model` will ask of its backend, in weights of `dtype`.

    Latent attention states its options with each call; that it is latent stands in its spec.
    """
    uses = []
    for block in _attention_blocks(model):
        spec = block.cache_spec()
        value_dim = spec.head_dim if spec.value_dim is None else spec.value_dim
        options = AttentionOptions(1.0) if spec.latent else block.options()
        use = AttentionUse(
            options, spec.head_dim, value_dim, spec.latent, dtype, cache_dtype, page_size
        )
        uses.append(use)
    return uses


def length_border(model: nn.Module) -> int | None:
    """The longest prompt whose length does not matter for what `model` caches of its tokens.

    None: the length never does. Modules for whom it does have an attribute of this name.
    """
    borders = [getattr(module, "length_border", None) for module in model.modules()]
    return min((border for border in borders if border is not None), default=None)


def bytes_per_page(specs: Sequence[CacheSpec], page_size: int, dtype: torch.dtype) -> int:
    """Bytes one page of `page_size` tokens takes over all attention blocks, keys and values."""
    numbers = sum(s.num_kv_heads * (s.head_dim + s.stored_value_dim) for s in specs)
    return numbers * page_size * dtype.itemsize


def cache_budget(
    device: torch.device, utilization: float | None, num_sharing: int = 1, step_bytes: int = 0
) -> int:
    """Bytes of the KV cache of a rank whose weights are there.

    Args:
        utilization: which share of the device's memory weights and cache may take together; None:
            on a GPU 0.9 of what is free, on a CPU a quarter of the memory (a container's limit).
        num_sharing: ranks that share the device's memory.
        step_bytes: what has to stay free for the largest step.

    Raises:
        OptionError: the share is used up already.
    """
    free, total = device_memory(device)
    if utilization is None and device.type == "cpu":
        return int(total * _HOST_SHARE) // num_sharing
    used = resident_bytes() if device.type == "cpu" else total - free
    if utilization is None:
        share = used + int(free * _GPU_SHARE)
        said = f"what is in use on {device}, and {_GPU_SHARE} of the rest,"
    else:
        share = int(total * utilization) // num_sharing
        said = f"gpu_memory_utilization={utilization} of the {_size(total)} of {device}"
    budget = share - used - step_bytes
    if budget <= 0:
        raise OptionError(
            f"{said} is {_size(share * num_sharing)}; {_size(used * num_sharing)} are in use "
            f"already and the largest step takes {_size(step_bytes)}: nothing is left for the KV "
            "cache. Raise gpu_memory_utilization, lower max_num_batched_tokens or max_num_seqs, or "
            "set kv_cache_memory_bytes."
        )
    return budget


def device_memory(device: torch.device) -> tuple[int, int]:
    """(free, total) bytes of the memory that tensors on `device` take.

    Of a CPU, whose memory other programs free and take at any time, all counts as free; of an MPS
    device, what the system recommends to keep to.
    """
    if device.type == "cpu":
        return (host_memory(),) * 2
    if device.type == "mps":
        total = torch.mps.recommended_max_memory()
        return total - torch.mps.driver_allocated_memory(), total
    return torch.accelerator.get_memory_info(device)


def pages_in_budget(
    budget: int, specs: Sequence[CacheSpec], page_size: int, dtype: torch.dtype
) -> int:
    """Pages that fit `budget` bytes.

    Raises:
        OptionError: not even one does.
    """
    page_bytes = bytes_per_page(specs, page_size, dtype)
    num_pages = budget // max(page_bytes, 1)
    if num_pages < 1:
        raise OptionError(
            f"{_size(budget)} of KV cache memory are too little for one page: page_size="
            f"{page_size} tokens take {_size(page_bytes)} over {len(specs)} attention blocks in "
            f"{str(dtype).removeprefix('torch.')}. Set kv_cache_memory_bytes to {page_bytes} or "
            f"more, or lower page_size."
        )
    return num_pages


def allocate_kv_caches(
    specs: Sequence[CacheSpec],
    num_pages: int,
    page_size: int,
    device: torch.device,
    dtype: torch.dtype,
) -> list[KVCache]:
    """Keys and values for each spec, [num_pages, page_size, num_kv_heads, width of either].

    The values of a latent cache lie in its keys; in their place stands None.

    They are not filled with zeros: attention reads only what was written, and the host commits
    memory when it is first written.

    Raises:
        OptionError: there is not that much memory.
    """

    def allocate(spec: CacheSpec, width: int) -> torch.Tensor:
        shape = (num_pages, page_size, spec.num_kv_heads, width)
        return torch.empty(shape, device=device, dtype=dtype)

    try:
        return [
            (allocate(s, s.head_dim), None if s.latent else allocate(s, s.stored_value_dim))
            for s in specs
        ]
    except RuntimeError as error:  # what torch raises when it is out of memory
        total = num_pages * bytes_per_page(specs, page_size, dtype)
        raise OptionError(
            f"cannot allocate a KV cache of {_size(total)} on {device}: {error}. "
            f"Lower kv_cache_memory_bytes."
        ) from error


def _size(num_bytes: int) -> str:
    """`num_bytes` for people, e.g. "1.5 MiB"."""
    value = float(num_bytes)
    for unit in ("bytes", "KiB", "MiB", "GiB"):
        if value < 1024 or unit == "GiB":
            break
        value /= 1024
    return f"{value:.0f} {unit}" if value == int(value) else f"{value:.1f} {unit}"
