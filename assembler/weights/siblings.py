"""Parameters that share one tensor on disk: the stack of experts that a model keeps apart, or
projections that a checkpoint fuses and a model does not.
"""

from __future__ import annotations

from collections.abc import Mapping

from assembler.errors import did_you_mean
from assembler.weights.cuts import Misfit, Window
from assembler.weights.map_rules import Source
from assembler.weights.parameters import ParameterSlot
from assembler.weights.pattern import Pattern


class Siblings:
    """Works out, from the model's other parameters, which rows of a shared tensor one gets."""

    def __init__(self, slots: Mapping[str, ParameterSlot]) -> None:
        self.slots = slots
        self._counts: dict[tuple[str, str], int] = {}

    def window(
        self, source: Source, target: Pattern, path: str, slot: ParameterSlot
    ) -> Window | None:
        """The share of `slot`, which `target` names as `path`; None if it has the tensor alone.

        Raises Misfit if the others that `source` counts on are not there.
        """
        if source.unstack is not None:
            return self._of_a_stack(source.unstack, target, path, slot)
        if source.split:
            return self._of_rows(source.split, path, slot)
        return None

    def _of_a_stack(self, name: str, target: Pattern, path: str, slot: ParameterSlot) -> Window:
        values = target.match(path)
        assert values is not None, (target, path)
        at, suffix = values[name], slot.name.removeprefix(path)
        others = {key: value for key, value in values.items() if key != name}
        form = target.fill_known(others)
        if (form, suffix) not in self._counts:
            count = 0
            while target.fill({**others, name: count}) + suffix in self.slots:
                count += 1
            self._counts[form, suffix] = count
        count = self._counts[form, suffix]
        if at >= count:
            lacking = target.fill({**others, name: count}) + suffix
            raise Misfit(f"is number {at} of a stack, and the model has no {lacking}")
        return Window(at, at + 1, count)

    def _of_rows(self, names: tuple[str, ...], path: str, slot: ParameterSlot) -> Window:
        own = [name for name in names if f".{path}".endswith(f".{name}")]
        if not own:
            raise Misfit(
                f"shares a tensor that is split over {', '.join(names)}: list it there too"
            )
        base, suffix = path.removesuffix(own[0]), slot.name.removeprefix(path)
        start, offset = 0, 0
        for name in names:
            other = self.slots.get(f"{base}{name}{suffix}")
            if other is None:
                beside = [
                    n.removeprefix(base)
                    for n in self.slots
                    if n.startswith(base) and n != slot.name
                ]
                near = did_you_mean(f"{name}{suffix}", beside)
                lacking = f"{base}{name}{suffix}, which does not exist"
                raise Misfit(f"shares a tensor with {lacking}{'.' * bool(near)}{near}")
            if name == own[0]:
                start = offset
            offset += other.layout.shape[0] if other.layout.shape else 1
        rows = slot.layout.shape[0] if slot.layout.shape else 1
        return Window(start, start + rows, offset)
