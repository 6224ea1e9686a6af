"""Random weights in which nothing hides: every norm, bias, sink and buffer of a model is noise."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

# How the norm before the head is called, in every modeling file that has one.
_FINAL_NORMS = (".norm", ".ln_f", ".final_layer_norm", ".final_layernorm", ".norm_f")
_FINAL_NORMS += (".final_norm", ".layer_norm", ".layernorm")


@torch.no_grad()
def randomise(model: Any, seed: int, logits: Callable[[Any], torch.Tensor]) -> None:
    """Fill the parameters and saved buffers of transformers' model, just made, in place.

    Matrices keep the variance of what they are applied to. What starts as one number everywhere is
    a norm (1, or 0 where 1 is added to the weight), a bias, a sink or a router's selection bias: it
    keeps its neutral value and gets noise. The final norm (without one, the head) is then scaled
    until the logits have a standard deviation near 1.

    Args:
        model: a causal language model.
        seed: of the noise.
        logits: computes logits to go by.
    """
    from transformers import Conv1D

    generator = torch.Generator().manual_seed(seed)
    norm = final_norm(model)
    neutral = neutral_value(norm)
    saved = set(model.state_dict())
    buffers = ((n, b) for n, b in model.named_buffers() if n in saved and b.is_floating_point())
    transposed = {id(module.weight) for module in model.modules() if isinstance(module, Conv1D)}
    for name, value in (*model.named_parameters(), *buffers):
        noise = torch.randn(value.shape, generator=generator)
        if value.dim() < 2 or bool((value == value.flatten()[0]).all()):
            value.add_(0.3 * noise)
        elif "embed" in name or name.endswith(("wte.weight", "wpe.weight")):
            value.copy_(0.4 * noise)
        else:
            value.copy_(noise * value.shape[-2 if id(value) in transposed else -1] ** -0.5)
    _scale_logits(model, norm, neutral, logits)


def _scale_logits(
    model: Any, norm: nn.Module | None, neutral: float, logits: Callable[[Any], torch.Tensor]
) -> None:
    head = model.get_output_embeddings()
    for _ in range(4):
        factor = 1.0 / logits(model).std()
        if getattr(norm, "weight", None) is None:
            head.weight.mul_(factor)
            continue
        offset = 1.0 - neutral
        norm.weight.copy_((norm.weight + offset) * factor - offset)
        if getattr(norm, "bias", None) is not None:
            norm.bias.mul_(factor)


def neutral_value(norm: nn.Module | None) -> float:
    """0 where the norm adds 1 to its weight, else 1: then a weight of 0 makes 0 of everything.

    What a new weight is does not tell: transformers makes those of Nemotron 1, and adds 1.
    """
    weight, bias = getattr(norm, "weight", None), getattr(norm, "bias", None)
    if norm is None or weight is None:
        return 1.0
    kept = [(leaf, leaf.clone()) for leaf in (weight, bias) if leaf is not None]
    for leaf, _ in kept:
        leaf.zero_()
    made = norm(torch.arange(weight.shape[-1], dtype=weight.dtype))
    for leaf, value in kept:
        leaf.copy_(value)
    return 0.0 if bool(made.any()) else 1.0


def final_norm(model: nn.Module) -> nn.Module | None:
    """The norm before the head, under any of its names; None where there is none."""
    found = [
        module
        for name, module in model.named_modules()
        if f".{name}".endswith(_FINAL_NORMS) and not re.search(r"\.\d+\.", name)  # of one layer
    ]
    return found[-1] if found else None
