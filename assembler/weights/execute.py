"""Carries a `LoadPlan` out: the only part of loading that touches memory.

The order is `materialize` -> `execute_plan` -> `reset_buffers` -> `tie_weights`. Tensors are read
in file order, each byte at most once, and every piece is copied once, into its slice of the final
parameter, changing dtype on the way: there is no concatenation and no second copy of the model.
Parameters that `map_parameters` leaves in the file are given to `materialize` and not read here:
their pages are fetched in the background, also after the load has returned.

A load that fails leaves no half-loaded model: its parameters go back to the meta device, where any
use of them raises.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path

import torch
from torch import nn

from assembler.errors import CheckpointError
from assembler.huge_pages import HugePages
from assembler.weights.copy_jobs import slice_of
from assembler.weights.file_reader import FileReader
from assembler.weights.index import CheckpointIndex
from assembler.weights.page_prefetch import PagePrefetch
from assembler.weights.plan import LoadPlan, TieCheck
from assembler.weights.streaming import default_readers, stream_pieces

Progress = Callable[[int], object]


def parameter_dtypes(
    model: nn.Module, dtype: torch.dtype, own: Mapping[str, str] | None = None
) -> dict[str, torch.dtype]:
    """What each parameter becomes: `dtype` if it is of floating point, else what it is.

    `own` (a plan's `dtypes`) names those that keep a type of their own, e.g. {"x": "float32"}.
    """
    named = model.named_parameters(remove_duplicate=False)
    dtypes = {name: dtype if old.is_floating_point() else old.dtype for name, old in named}
    return dtypes | {name: getattr(torch, word) for name, word in (own or {}).items()}


def materialize(
    model: nn.Module,
    device: torch.device | str,
    dtype: torch.dtype,
    own_dtypes: Mapping[str, str] | None = None,
    given: Mapping[str, torch.Tensor] | None = None,
) -> None:
    """Give every parameter uninitialised memory on `device`; those of floating point get `dtype`.

    `own_dtypes` (a plan's) names the parameters that keep a type of their own. Parameters that are
    one object stay one object; those in `given` get that tensor instead of memory.

    Raises:
        CheckpointError: there is not enough memory. All parameters are on the meta device then.
    """
    dtypes = parameter_dtypes(model, dtype, own_dtypes)
    given = given or {}
    made: dict[int, nn.Parameter] = {}
    allocate = _allocator(model, torch.device(device), dtypes, given)
    for path, module in model.named_modules():
        for leaf, old in module._parameters.items():
            if old is None:
                continue
            name = f"{path}.{leaf}" if path else leaf
            if id(old) not in made:
                try:
                    memory = given.get(name)
                    if memory is None:
                        memory = allocate(old.shape, dtypes[name])
                except (RuntimeError, MemoryError) as error:
                    _unload(model)
                    size = old.numel() * dtypes[name].itemsize
                    raise CheckpointError(
                        f"no memory on {device} for {name} ({size:,} bytes): "
                        f"{str(error).splitlines()[0]}"
                    ) from error
                made[id(old)] = nn.Parameter(memory, requires_grad=old.requires_grad)
            module._parameters[leaf] = made[id(old)]


def _allocator(
    model: nn.Module,
    device: torch.device,
    dtypes: Mapping[str, torch.dtype],
    given: Mapping[str, torch.Tensor],
) -> Callable[[Sequence[int], torch.dtype], torch.Tensor]:
    """What gives memory of a shape and type on `device`, to all parameters but the `given` ones."""
    if device.type != "cpu":
        return lambda shape, dtype: torch.empty(shape, dtype=dtype, device=device)
    named = model.named_parameters()
    total = sum(p.numel() * dtypes[name].itemsize for name, p in named if name not in given)
    return HugePages(total).empty


def _unload(model: nn.Module) -> None:
    """Put every parameter back on meta, so that no part of a failed load can be used."""
    materialize(model, "meta", torch.get_default_dtype())


@torch.no_grad()
def execute_plan(
    plan: LoadPlan,
    model: nn.Module,
    index: CheckpointIndex,
    progress: Progress | None = None,
    *,
    mapped: Collection[str] = (),
    readers: int | None = None,
) -> None:
    """Fill the parameters of a materialised model.

    Args:
        plan: made by `plan_load` for this model (the same rank) and this checkpoint.
        progress: called with numbers of bytes on disk as they are loaded; they add up to
            `plan.nbytes`.
        mapped: names of the parameters that were given to `materialize` as views of the files.
        readers: threads that read; None chooses.

    Raises:
        CheckpointError: the plan has findings; a file cannot be read (names file and tensor); a
            tensor of a tied parameter differs from what it is tied to. The model's parameters are
            on the meta device then.
    """
    plan.raise_for_findings()
    report = progress or (lambda nbytes: None)
    parameters = dict(model.named_parameters(remove_duplicate=False))
    meta = [name for name, p in parameters.items() if p.is_meta]
    assert not meta, f"materialize the model before loading it: {meta[:3]}"
    readers = readers or default_readers()
    pieces = [piece for piece in plan.pieces if piece.target not in mapped]
    copied = {piece.source for piece in pieces}
    left = {p.source: p.info for p in plan.pieces if p.source not in copied}.values()
    reader = FileReader(scattered=_partly_read(plan, index))
    prefetch = PagePrefetch(left, readers)
    try:
        for info in left:
            report(info.nbytes)
        stream_pieces(pieces, parameters, reader, report, readers)
        for constant in plan.constants:
            slice_of(parameters[constant.target], constant.target_slice).fill_(constant.value)
        for tie in plan.ties:
            check_tie(tie, index)
    except BaseException:
        prefetch.stop()
        _unload(model)
        raise
    finally:
        reader.close()


def _partly_read(plan: LoadPlan, index: CheckpointIndex) -> set[Path]:
    """Files of which this rank needs far less than all: reading ahead would read the rest too."""
    whole: Counter[Path] = Counter()
    for info in index.tensors.values():
        whole[info.file] += info.nbytes
    unwanted = Counter(whole)
    for piece in plan.pieces:
        unwanted[piece.info.file] -= piece.nbytes
    return {file for file, nbytes in whole.items() if unwanted[file] > 0.1 * nbytes}


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
