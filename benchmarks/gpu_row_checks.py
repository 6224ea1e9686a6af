"""Norms, gates and embeddings on the device against the references in float64."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from gpu_errors import TOLERANCE, Check, largest_error, name_of
from torch.nn import functional as F

from assembler.blocks.activations import ACTIVATIONS
from assembler.kernels.embedding import embed_torch
from assembler.kernels.gating import gated_torch
from assembler.kernels.norms_torch import layer_norm_torch, rms_norm_torch

Pair = Callable[[], tuple[torch.Tensor, torch.Tensor]]  # what is given, what is wanted


def row_checks(
    device: torch.device, dtype: torch.dtype, smoke: bool, all_forms: bool
) -> Iterator[Check]:
    """One form of each in every dtype, the other activations if `all_forms`."""
    tokens, width = (3, 48) if smoke else (257, 4096)
    pairs = {
        **_norms(device, dtype, tokens, width),
        **_gates(device, dtype, tokens, width, all_forms),
        **_embeddings(device, dtype, tokens, width),
    }
    for name, pair in pairs.items():

        def check(pair: Pair = pair) -> float:
            return largest_error(*pair())

        yield f"{name}, {name_of(dtype)}", check, TOLERANCE[dtype]


def _norms(device: torch.device, dtype: torch.dtype, tokens: int, width: int) -> dict[str, Pair]:
    from assembler.kernels import norms_triton

    x, residual = (torch.randn(tokens, width, device=device).to(dtype) for _ in range(2))
    weight, bias = (torch.randn(width, device=device).to(dtype) for _ in range(2))
    heads = torch.randn(4, width // 4, device=device).to(dtype)
    total, exact = (x + residual).double(), [t.double() for t in (weight, bias)]
    return {
        "add + RMSNorm": lambda: (
            norms_triton.add_rms_norm(x, residual, weight, 1e-6, 1)[0],
            rms_norm_torch(total, exact[0], 1e-6, 1),
        ),
        "sum beside RMSNorm": lambda: (
            norms_triton.add_rms_norm(x, residual, weight, 1e-6, 0)[1],
            total,
        ),
        "add + LayerNorm": lambda: (
            norms_triton.add_layer_norm(x, residual, weight, bias, 1e-6, 0)[0],
            layer_norm_torch(total, *exact, 1e-6, 0),
        ),
        "RMSNorm": lambda: (
            norms_triton.rms_norm(x, weight, 1e-6, 0),
            rms_norm_torch(x.double(), exact[0], 1e-6, 0),
        ),
        "RMSNorm without a weight": lambda: (
            norms_triton.rms_norm(x, None, 1e-6, 0),
            rms_norm_torch(x.double(), None, 1e-6, 0),
        ),
        "RMSNorm of heads": lambda: (
            norms_triton.rms_norm(x.unflatten(1, (4, -1)), heads, 1e-6, 1),
            rms_norm_torch(x.double().unflatten(1, (4, -1)), heads.double(), 1e-6, 1),
        ),
        "LayerNorm": lambda: (
            norms_triton.layer_norm(x, weight, bias, 1e-6, 1),
            layer_norm_torch(x.double(), *exact, 1e-6, 1),
        ),
    }


def _gates(
    device: torch.device, dtype: torch.dtype, tokens: int, width: int, all_forms: bool
) -> dict[str, Pair]:
    """Gate and up as halves of one projection, under each activation that the kernel knows."""
    from assembler.kernels.activation_triton import KNOWN_ACTIVATIONS
    from assembler.kernels.gated_triton import gated_triton

    both = 3 * torch.randn(tokens, 2 * width, device=device)
    gate, up = both.to(dtype).chunk(2, dim=-1)
    functions = {**ACTIVATIONS, "softplus": F.softplus}

    def pair(name: str, limit: float | None = None, up_offset: float = 0.0) -> Pair:
        def run() -> tuple[torch.Tensor, torch.Tensor]:
            exact = (gate.double(), up.double(), functions[name], limit, up_offset)
            return gated_triton(gate, up, name, limit, up_offset), gated_torch(*exact)

        return run

    spelled = {kernel: name for name, kernel in KNOWN_ACTIVATIONS.items()}
    names = spelled.values() if all_forms else ["silu"]
    pairs = {f"gate {name}": pair(name) for name in sorted(names)}
    return {**pairs, "gate clamped": pair("quick_gelu", 7.0, 1.0)}


def _embeddings(
    device: torch.device, dtype: torch.dtype, tokens: int, width: int
) -> dict[str, Pair]:
    """A whole vocabulary, and a rank's share of one of three times the rows."""
    from assembler.kernels.embedding_triton import embed_triton

    weight = torch.randn(tokens, width, device=device).to(dtype)
    ids = torch.arange(3 * tokens, device=device)
    share = range(tokens, 2 * tokens)
    return {
        "embedding": lambda: (embed_triton(ids % tokens, weight), weight[ids % tokens]),
        "embedding, a share, scaled": lambda: (
            embed_triton(ids, weight, 2.5, share.start),
            embed_torch(ids, weight.double(), 2.5, share=share),
        ),
    }
