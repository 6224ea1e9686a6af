"""Carries a `LoadPlan` out: the only part of loading that touches memory.

The order is `materialize` -> `execute_plan` -> `reset_buffers` -> `tie_weights`. Tensors are read
in file order, each once, and every piece is copied straight into its slice of the final parameter,
changing dtype on the way: there is no concatenation and no second copy of the model.

A load that fails leaves no half-loaded model: its parameters go back to the meta device, where any
use of them raises.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import groupby

import torch
from torch import nn

from assembler.errors import CheckpointError
from assembler.weights.index import CheckpointIndex
from assembler.weights.ops import apply_ops
from assembler.weights.plan import LoadPlan, Piece, Span, TieCheck

Progress = Callable[[int], object]


def materialize(
    model: nn.Module,
    device: torch.device | str,
    dtype: torch.dtype,
    dtypes: Mapping[str, str] | None = None,
) -> None:
    """Give every parameter uninitialised memory on `device`; those of floating point get `dtype`.

    `dtypes` (a plan's) names the parameters that keep a type of their own, e.g. {"x": "float32"}.

    Parameters that are one object stay one object.
    """
    made: dict[int, nn.Parameter] = {}
    own = {name: getattr(torch, word) for name, word in (dtypes or {}).items()}
    for path, module in model.named_modules():
        for name, old in module._parameters.items():
            if old is None:
                continue
            if id(old) not in made:
                kind = dtype if old.is_floating_point() else old.dtype
                kind = own.get(f"{path}.{name}" if path else name, kind)
                memory = torch.empty(old.shape, dtype=kind, device=device)
                made[id(old)] = nn.Parameter(memory, requires_grad=old.requires_grad)
            module._parameters[name] = made[id(old)]


@torch.no_grad()
def execute_plan(
    plan: LoadPlan, model: nn.Module, index: CheckpointIndex, progress: Progress | None = None
) -> None:
    """Fill the parameters of a materialised model.

    Args:
        plan: made by `plan_load` for this model (the same rank) and this checkpoint.
        progress: called with the number of bytes on disk each time a tensor has been loaded; they
            add up to `plan.nbytes`.

    Raises:
        CheckpointError: the plan has findings; a file cannot be read (names file and tensor); a
            tensor of a tied parameter differs from what it is tied to. The model's parameters are
            on the meta device then.
    """
    plan.raise_for_findings()
    try:
        parameters = dict(model.named_parameters(remove_duplicate=False))
        for _, pieces in groupby(plan.pieces, key=lambda piece: piece.source):
            _load_tensor(list(pieces), parameters, index, progress)
        for constant in plan.constants:
            place = _slice(parameters[constant.target], constant.target_slice)
            place.fill_(constant.value)
        for tie in plan.ties:
            check_tie(tie, index)
    except BaseException:
        materialize(model, "meta", torch.get_default_dtype())
        raise


def _load_tensor(
    pieces: list[Piece],
    parameters: dict[str, nn.Parameter],
    index: CheckpointIndex,
    progress: Progress | None,
) -> None:
    """Copy all that one tensor on disk feeds."""
    info = pieces[0].info
    try:
        tensor = index.read(info.name)
        for piece in pieces:
            place = _slice(parameters[piece.target], piece.target_slice)
            value = apply_ops(piece.ops, tensor)
            assert not place.is_meta, "materialize the model before loading it"
            assert value.shape == place.shape, (piece, value.shape, place.shape)
            place.copy_(value)
    except CheckpointError:
        raise
    except (OSError, RuntimeError, ValueError, MemoryError) as error:
        raise CheckpointError(
            f"{info.file}: loading tensor '{info.name}' into {pieces[0].target} failed: {error}"
        ) from error
    if progress is not None:
        progress(info.nbytes)


def _slice(parameter: torch.Tensor, spans: Sequence[Span]) -> torch.Tensor:
    for span in spans:
        parameter = parameter.narrow(span.dim, span.start, span.stop - span.start)
    return parameter


def check_tie(tie: TieCheck, index: CheckpointIndex) -> None:
    """Read a tied parameter's tensor; CheckpointError if it is not the one it is tied to."""
    if not torch.equal(index.read(tie.source), index.read(tie.twin)):
        raise CheckpointError(
            f"{tie.info.file}: the config ties {tie.target} to {tie.tied_to}, but tensor "
            f"'{tie.source}' differs from '{tie.twin}'. If the head has weights of its own, set "
            "tie_word_embeddings to false."
        )


def reset_buffers(model: nn.Module, device: torch.device | str) -> None:
    """Recompute on `device` the buffers that no checkpoint holds (RoPE frequencies)."""
    for module in model.modules():
        if hasattr(module, "reset_buffers"):
            module.reset_buffers(device)
    lost = [name for name, buffer in model.named_buffers() if buffer.is_meta]
    assert not lost, f"no block recomputes {lost}"


def tie_weights(model: nn.Module) -> None:
    """Let every tied head share the weight of the token embedding."""
    heads = [module for module in model.modules() if getattr(module, "tied", None) is True]
    if heads:
        [embedding] = [m for m in model.modules() if getattr(m, "role", None) == "embedding"]
        for head in heads:
            head.tie(embedding)
