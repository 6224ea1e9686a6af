"""Parameters that need no copy: views of the memory-mapped file.

A parameter can stay in the file if one tensor holds its values in the same order and type. The map
is private and copy-on-write: writing to such a parameter changes neither the file nor any other
process. The file must not be changed or cut short while the model lives (replacing it by another
file, as a rename does, is harmless): pages that were not read yet would show the change.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import groupby

import torch
from torch import nn

from assembler.weights.copy_jobs import slice_of
from assembler.weights.index import CheckpointIndex
from assembler.weights.plan import LoadPlan, Piece
from assembler.weights.regions import region_of
from assembler.weights.tensor_data import TORCH_DTYPES


def map_parameters(
    plan: LoadPlan,
    model: nn.Module,
    index: CheckpointIndex,
    dtypes: Mapping[str, torch.dtype],
) -> dict[str, torch.Tensor]:
    """The parameters that can stay memory-mapped, as views of their files on the CPU.

    Args:
        model: the model on meta.
        dtypes: what each of its parameters is to be.

    Raises:
        CheckpointError: a file cannot be mapped or ends before a tensor does.
    """
    shapes = {name: tuple(p.shape) for name, p in model.named_parameters(remove_duplicate=False)}
    by_target = sorted(plan.pieces, key=lambda piece: piece.target)
    mapped = {}
    for target, group in groupby(by_target, key=lambda piece: piece.target):
        pieces = list(group)
        if _lies_in_file(pieces, shapes[target], dtypes[target]):
            mapped[target] = index.read(pieces[0].source).view(shapes[target])
    return mapped


def _lies_in_file(pieces: Sequence[Piece], shape: tuple[int, ...], dtype: torch.dtype) -> bool:
    """Whether the pieces, together, are one whole tensor as it stands on disk."""
    info = pieces[0].info
    if TORCH_DTYPES.get(info.dtype) != dtype or info.offset % dtype.itemsize:
        return False
    if any(piece.source != info.name for piece in pieces):
        return False
    parameter = torch.empty(shape, device="meta")
    covered = 0
    for piece in pieces:
        place = slice_of(parameter, piece.target_slice)
        region = region_of(piece.ops, info.shape, dtype)
        if region is None or not region.is_contiguous or not place.is_contiguous():
            return False
        if region.offset != place.storage_offset():
            return False
        covered += place.numel()
    return covered == parameter.numel() == info.numel
