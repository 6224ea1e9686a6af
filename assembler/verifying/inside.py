"""The modules within a block beside the reference's: where inside it the difference begins."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from assembler.verifying.compare import nearest, relative_error
from assembler.verifying.reference import Reference
from assembler.verifying.report import Inside
from assembler.verifying.trace import recorded
from assembler.verifying.trials import Bench
from assembler.weights.plan import LoadPlan


def compare_inside(
    bench: Bench, plan: LoadPlan, reference: Reference, ids: torch.Tensor
) -> tuple[Inside, ...]:
    """What the block's modules give, on the reference's input, part by part."""
    prefix = f"{bench.path}."
    pieces = [piece for piece in plan.pieces if piece.target.startswith(prefix)]
    parts = list(dict.fromkeys(_parts(plan, prefix, reference, pieces)))
    if len(parts) < 2:
        return ()
    theirs = reference.trace(ids, [part[3] for part in parts])
    modules = dict.fromkeys(part[0].removeprefix(prefix) for part in parts)
    with recorded(bench.block, modules) as ours:
        bench.run(bench.block)
    found = []
    for module, name, rows, counterpart in parts:
        mine, other = ours.get(module.removeprefix(prefix)), theirs.get(counterpart)
        if mine is None or other is None or not mine.outputs or not other.outputs:
            continue
        out = mine.outputs[0]
        if rows is not None:
            if out.shape[-1] < rows[1]:
                continue
            out = out[..., rows[0] : rows[1]]
        wanted = other.outputs[0]
        if out.numel() != wanted.numel():
            continue
        layouts = (wanted, wanted.transpose(1, 2)) if wanted.dim() == 4 else (wanted,)
        error = relative_error(out, nearest(out, layouts))
        if error is not None:
            found.append(Inside(f"{module}.{name}" if name else module, counterpart, error))
    return tuple(found)


def _parts(
    plan: LoadPlan, prefix: str, reference: Reference, pieces: list
) -> Iterator[tuple[str, str, tuple[int, int] | None, str]]:
    """(our module, its part, the part's rows of the output, the reference's module)."""
    for slot in plan.parameters:
        if not slot.name.startswith(prefix) or slot.leaf != "weight":
            continue
        start = 0
        for part in slot.parts:
            rows = (start, start + part.size) if part.name else None
            start += part.size
            sources = {p.source for p in pieces if p.target == slot.name and p.part == part.name}
            modules = {reference.module_of(source) for source in sources}
            module = next(iter(modules)) if len(modules) == 1 else None
            alone = module is not None and _parts_of(module, reference, pieces) == {part.name}
            if alone:
                yield slot.module, part.name if len(slot.parts) > 1 else "", rows, module


def _parts_of(module: str, reference: Reference, pieces: list) -> set[str]:
    """The parts that the tensors of one module of the reference fill."""
    return {piece.part for piece in pieces if reference.module_of(piece.source) == module}
