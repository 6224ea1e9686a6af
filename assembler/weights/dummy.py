"""Random weights instead of a checkpoint, for tests and benchmarks (`load=dummy`)."""

from __future__ import annotations

import hashlib

import torch
from torch import nn

from assembler.blocks.parallel import TensorParallel
from assembler.weights.parameters import ParameterSlot, read_parameters

SPREAD = 0.02  # standard deviation of the weights, as transformers initialises


@torch.no_grad()
def dummy_load(model: nn.Module, seed: int = 0) -> None:
    """Fill a materialised model with normal weights; norms come out near 1, biases near 0.

    A parameter's values depend on the seed, its name and its device alone, so two models that share
    names share weights, and the ranks of a tensor-parallel group hold slices of one model.
    """
    parameters = read_parameters(model)
    modules = dict(model.named_modules())
    for slot in parameters.slots.values():
        if slot.tied_to is not None:
            continue
        module = modules[slot.module]
        value = getattr(module, slot.leaf)
        generator = torch.Generator(value.device).manual_seed(_seed(seed, slot.name))
        middle = 0.0
        if getattr(module, "role", None) == "norm" and slot.leaf == "weight":
            middle = 1.0 - getattr(module, "offset", 0)
        if value.shape == slot.layout.shape:
            value.normal_(middle, SPREAD, generator=generator)
            continue
        whole = torch.empty(slot.layout.shape, dtype=value.dtype, device=value.device)
        whole.normal_(middle, SPREAD, generator=generator)
        value.copy_(_share(whole, slot, parameters.tp))


def _share(whole: torch.Tensor, slot: ParameterSlot, tp: TensorParallel) -> torch.Tensor:
    """This rank's rows of every part, in storage order."""
    offset, shares = 0, []
    for part in slot.parts:
        rows = slot.local_rows(part, tp)
        shares.append(whole.narrow(slot.dim, offset + rows.start, len(rows)))
        offset += part.size
    return torch.cat(shares, dim=slot.dim)


def _seed(seed: int, name: str) -> int:
    digest = hashlib.blake2b(f"{seed}/{name}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1
