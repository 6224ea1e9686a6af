"""Finds the first place at which a model departs from the reference, and what is wrong there.

The two are compared where layers begin and end, which needs no notion of what is inside. Within
the first stretch that goes wrong, block after block: one that is off on the reference's own input
is at fault itself; one that is right on it was given something else, and the wiring is.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import fx

from assembler.loading import Assembly
from assembler.model.registry import default_registry
from assembler.verifying.causes import Clues, find_causes
from assembler.verifying.compare import nearest, relative_error
from assembler.verifying.field_changes import Sizes
from assembler.verifying.inside import compare_inside
from assembler.verifying.lines import BlockLine, block_line, result_line
from assembler.verifying.pairs import Pair
from assembler.verifying.reference import Reference
from assembler.verifying.report import Difference
from assembler.verifying.side_by_side import SideBySide, Stretch
from assembler.verifying.sums import as_softcap, as_sum
from assembler.verifying.trials import Bench
from assembler.weights.plan import LoadPlan


class Locator:
    """Both models, and what they do with the same tokens."""

    def __init__(
        self,
        assembly: Assembly,
        model: fx.GraphModule,
        reference: Reference,
        plan: LoadPlan,
        ids: torch.Tensor,
        tolerance: float,
    ) -> None:
        """`plan` is one whose sources have the names by which the reference's tensors are known."""
        self._assembly, self._model, self._reference = assembly, model, reference
        self._plan, self._ids, self._tolerance = plan, ids, tolerance
        self._sides = SideBySide(model, reference, plan, ids)

    @property
    def layers_are_paired(self) -> bool:
        """Whether the reference's layers are known; without them, only blocks are compared."""
        return bool(self._sides.layers)

    def first_difference(self) -> Difference | None:
        """The first place that differs; None where no place does by more than the tolerance."""
        for stretch in self._sides.stretches():
            found = nearest(stretch.ours[0], stretch.theirs)
            error = None if found is None else relative_error(stretch.ours[0], found)
            if found is not None and error is not None and error <= self._tolerance:
                continue
            difference = self._within(stretch)
            if difference is not None:
                return difference
            if found is not None and error is not None:
                return self._of_result(stretch, found, error)
        return None

    def _within(self, stretch: Stretch) -> Difference | None:
        """The first block of a stretch that differs."""
        for name in stretch.blocks:
            pair, mine = self._sides.pairs.get(name), self._sides.ours[name]
            if pair is None or not mine.outputs:
                continue
            wanted = self._sides.wanted(pair)
            found = nearest(mine.outputs[0], wanted)
            error = None if found is None else relative_error(mine.outputs[0], found)
            if error is not None and error > self._tolerance:
                return self._of_block(stretch, pair, wanted, error)
        return None

    def _of_block(
        self, stretch: Stretch, pair: Pair, wanted: list[torch.Tensor], error: float
    ) -> Difference:
        mine, given = (
            self._sides.ours[pair.block],
            self._sides.given(pair, self._sides.ours[pair.block]),
        )
        line = block_line(self._assembly.spec, pair.block)
        input_error = alone = bench = None
        if given is not None:
            if mine.streams:
                input_error = relative_error(mine.streams[0], given)
            bench = self._bench(pair, line, given, wanted)
            alone = bench.error()
        is_wiring = alone is not None and alone <= self._tolerance
        reference_wiring = ""
        if is_wiring and given is not None:
            reference_wiring = self._wiring(given, self._sides.terms(stretch, but=pair.block))
        causes, tried, inside = (), 0, ()
        if not is_wiring and bench is not None and alone is not None:
            causes, tried = find_causes(bench, self._clues(line), alone, self._tolerance)
            inside = compare_inside(bench, self._plan, self._reference, self._ids)
        module = pair.module if pair.whole else pair.leaves[0]
        return Difference(
            kind="wiring" if is_wiring else "block",
            place=pair.block,
            where=line.where,
            block=line.entry.block,
            error=error,
            input_error=input_error,
            alone_error=alone,
            equation=line.equation,
            equation_where=line.equation_where,
            module=module if pair.whole else f"{module} to {pair.leaves[-1]}",
            module_class=type(self._reference.modules[module]).__name__,
            causes=causes,
            tried=tried,
            inside=inside,
            reference_wiring=reference_wiring,
        )

    def _of_result(self, stretch: Stretch, found: torch.Tensor, error: float) -> Difference:
        """All blocks agree, or have no counterpart, and what comes of them does not."""
        line = result_line(self._assembly.spec, stretch.name, stretch.is_begin)
        module = self._sides.layers.get(stretch.name, "")
        return Difference(
            kind="wiring",
            place=stretch.name or ("what the layers are given" if stretch.is_begin else "logits"),
            where=line.where,
            block="",
            error=error,
            input_error=None,
            alone_error=None,
            equation=line.equation,
            equation_where=line.where,
            module=module,
            module_class=type(self._reference.modules[module]).__name__ if module else "",
            reference_wiring=self._wiring(found, self._sides.terms(stretch)),
        )

    def _wiring(self, found: torch.Tensor, terms: Mapping[str, torch.Tensor]) -> str:
        """What the reference makes a stream of, in our words; "" if no sum or soft-cap fits."""
        return as_sum(found, terms) or as_softcap(found, terms, self._assembly.config) or ""

    def _bench(
        self, pair: Pair, line: BlockLine, given: torch.Tensor, wanted: list[torch.Tensor]
    ) -> Bench:
        return Bench(
            spec=self._assembly.spec,
            registry=default_registry(),
            path=pair.block,
            entry=line.entry,
            block=self._model.get_submodule(pair.block),
            given=given,
            wanted=tuple(wanted),
        )

    def _clues(self, line: BlockLine) -> Clues:
        spec, weight_map = self._assembly.spec, self._assembly.weight_map
        assert weight_map is not None, "assembled with its weights"
        heads = getattr(line.entry, "num_heads", 0) or 1
        width = getattr(line.entry, "head_dim", None) or max(1, spec.hidden_size // heads)
        return Clues(
            config=self._assembly.config,
            sizes=Sizes(spec.hidden_size, heads, width),
            slots={slot.name: slot for slot in self._plan.parameters},
            weight_map=weight_map,
            where=line.where,
        )
