"""What a name means: a tensor on disk, a parameter, a module, or a part of a fused parameter."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from assembler.errors import did_you_mean
from assembler.weights.fold import blank_indices, fill_form, fold_text
from assembler.weights.parameters import ParameterSlot
from assembler.weights.pieces import Piece
from assembler.weights.plan import LoadPlan
from assembler.weights.quantized import tensors_of
from assembler.weights.tensor_info import TensorInfo


@dataclass(frozen=True)
class Asked:
    """A name, looked up on both sides."""

    full: str
    tensor: str = ""  # on disk, "" where the checkpoint has no such tensor
    parameters: tuple[ParameterSlot, ...] = ()  # of the model
    part: str = ""  # of them, "" for all
    not_found: str = ""  # why there is neither

    @property
    def sides(self) -> tuple[str, ...]:
        return ("checkpoint",) * bool(self.tensor) + ("model",) * bool(self.parameters)

    def wants(self, piece: Piece) -> bool:
        """Whether the piece belongs to the story."""
        if self.tensor in (piece.source, *(info.name for info in tensors_of(piece.info))):
            return True
        of_parameter = any(piece.target in (s.name, s.tied_to) for s in self.parameters)
        return of_parameter and self.part in ("", piece.part)


def find_names(name: str, plan: LoadPlan, tensors: Mapping[str, TensorInfo]) -> Asked:
    """Look `name` up; a tensor's may be as the map has it, and may lack its `.weight`.

    Modules mean all their parameters. Parts are written behind the module or the parameter:
    `attn.qkv.q`, `attn.qkv.q.weight` and `attn.qkv.weight.q` are the same.
    """
    on_disk = plan.naming.on_disk(name)
    whole = [n for n in (name, on_disk) if n in tensors]
    parameters, part = _parameters(name, plan.parameters)
    if not whole and not parameters:
        whole = [n for n in (f"{name}.weight", f"{on_disk}.weight") if n in tensors]
    if not whole and not parameters:
        return Asked(name, not_found=_not_found(name, plan, tensors))
    tensor = whole[0] if whole else ""
    full = tensor or (parameters[0].name if len(parameters) == 1 and not part else name)
    return Asked(full, tensor, parameters, part)


def _parameters(name: str, slots: Iterable[ParameterSlot]) -> tuple[tuple[ParameterSlot, ...], str]:
    own, by_part = [], []
    for slot in slots:
        if name in (slot.name, slot.module):
            own.append(slot)
        elif name.startswith(f"{slot.module}."):
            by_part += [(slot, part) for part in _parts(slot) if name in _part_names(slot, part)]
    if own:
        return tuple(own), ""
    return tuple(slot for slot, _ in by_part), by_part[0][1] if by_part else ""


def _parts(slot: ParameterSlot) -> list[str]:
    return [part.name for part in slot.parts] if len(slot.parts) > 1 else []


def _part_names(slot: ParameterSlot, part: str) -> tuple[str, str, str]:
    return f"{slot.module}.{part}", f"{slot.module}.{part}.{slot.leaf}", f"{slot.name}.{part}"


def _not_found(name: str, plan: LoadPlan, tensors: Mapping[str, TensorInfo]) -> str:
    """What is inside of a name that stands for several; else the nearest names of both sides.

    Forms are compared, since layers only repeat them.
    """
    modules = [slot.module for slot in plan.parameters]
    inside = [n for n in dict.fromkeys([*modules, *tensors]) if n.startswith(f"{name}.")]
    if inside:
        return f"'{name}' holds several: ask for one of {fold_text(inside)}."
    ours: list[str] = []
    for slot in plan.parameters:
        ours += [slot.name, slot.module, *(f"{slot.module}.{part}" for part in _parts(slot))]
    indices = blank_indices(name)[1]
    candidates: dict[tuple, str] = {}
    known = {*ours, *tensors}
    for other in sorted(known):
        form, own = blank_indices(other)
        same = fill_form(form, indices) if len(own) == len(indices) else ""
        if same in known:
            candidates[form] = same
        else:
            candidates.setdefault(form, other)
    modules_above = {path for path in map(_parent, ours) if path}
    same_end, near_end = _by_ending(name, [*candidates.values(), *sorted(modules_above)])
    hint = same_end or did_you_mean(name, candidates.values()) or near_end
    return f"neither the checkpoint nor the model has '{name}'.{hint}"


def _parent(name: str) -> str:
    """`layers.0.attn` of `layers.0.attn.qkv`; "" where that is no module's name."""
    above = name.rpartition(".")[0]
    return "" if above.rpartition(".")[2].isdecimal() else above


def _by_ending(name: str, known: Iterable[str]) -> tuple[str, str]:
    """Hints at a name that ends in `name`, and at one whose end is near: `layers.0.attn`."""
    depth = name.count(".") + 1
    ends: dict[str, str] = {}
    for other in known:
        ends.setdefault(".".join(other.split(".")[-depth:]), other)
    near = difflib.get_close_matches(name, list(ends), n=1)
    same = f" Did you mean '{ends[name]}'?" if name in ends else ""
    return same, f" Did you mean '{ends[near[0]]}'?" if near else ""
