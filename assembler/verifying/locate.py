"""Finds the first place at which a model departs from the reference, and what is wrong there.

The two are compared where layers begin and end, which needs no notion of what is inside. Within
the first stretch that goes wrong, block after block: one that is off on the reference's own input
is at fault itself; one that is right on it was given something else, and the wiring is.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import fx

from assembler.loading import Assembly
from assembler.model.registry import default_registry
from assembler.verifying.causes import Clues, find_causes
from assembler.verifying.compare import nearest, relative_error
from assembler.verifying.inside import compare_inside
from assembler.verifying.lines import block_line, result_line
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
        mine = self._sides.ours[pair.block]
        given = self._sides.given(pair, mine)
        found = self._at(pair.block, error)
        module = pair.module if pair.whole else pair.leaves[0]
        found = replace(
            found,
            module=module if pair.whole else f"{module} to {pair.leaves[-1]}",
            module_class=type(self._reference.modules[module]).__name__,
        )
        if given is None:
            return found
        if mine.streams:
            found = replace(found, input_error=relative_error(mine.streams[0], given))
        bench = self._bench(pair.block, given, wanted)
        alone = bench.error()
        if alone is None:
            return found
        if alone <= self._tolerance:
            terms = self._sides.terms(stretch, but=pair.block)
            wiring = self._wiring(given, terms)
            found = replace(found, kind="wiring", alone_error=alone, reference_wiring=wiring)
            return found if wiring else self._uncompared(stretch, given) or found
        causes, tried = find_causes(bench, self._clues(found.where), alone, self._tolerance)
        inside = compare_inside(bench, self._plan, self._reference, self._ids)
        return replace(found, alone_error=alone, causes=causes, tried=tried, inside=inside)

    def _of_result(self, stretch: Stretch, found: torch.Tensor, error: float) -> Difference:
        """All blocks agree, or have no counterpart, and what comes of them does not."""
        line = result_line(self._assembly.spec, stretch.name, stretch.is_begin)
        module = self._sides.layers.get(stretch.name, "")
        wiring = self._wiring(found, self._sides.terms(stretch))
        difference = Difference(
            kind="wiring",
            place=stretch.name or ("what the layers are given" if stretch.is_begin else "logits"),
            where=line.where,
            block="",
            error=error,
            equation=line.equation,
            equation_where=line.where,
            module=module,
            module_class=type(self._reference.modules[module]).__name__ if module else "",
            reference_wiring=wiring,
            uncompared=tuple(self._sides.uncompared(stretch)),
        )
        return difference if wiring else self._uncompared(stretch, found) or difference

    def _uncompared(self, stretch: Stretch, wanted: torch.Tensor) -> Difference | None:
        """A block without a counterpart (a norm without weights) that can be changed to fit."""
        for name in self._sides.uncompared(stretch):
            streams = self._sides.ours[name].streams
            bench = self._bench(name, streams[0], [wanted]) if streams else None
            alone = None if bench is None else bench.error()
            if bench is None or alone is None or alone <= self._tolerance:
                continue
            found = replace(self._at(name, alone), alone_error=alone)
            causes, tried = find_causes(bench, self._clues(found.where), alone, self._tolerance)
            if causes:
                return replace(found, causes=causes, tried=tried)
        return None

    def _at(self, path: str, error: float) -> Difference:
        """A difference of the block at `path`, its lines filled in."""
        line = block_line(self._assembly.spec, path)
        return Difference(
            kind="block",
            place=path,
            where=line.where,
            block=line.entry.block,
            error=error,
            equation=line.equation,
            equation_where=line.equation_where,
        )

    def _wiring(self, found: torch.Tensor, terms: Mapping[str, torch.Tensor]) -> str:
        """What the reference makes a stream of, in our words; "" if no sum or soft-cap fits."""
        return as_sum(found, terms) or as_softcap(found, terms, self._assembly.config) or ""

    def _bench(self, path: str, given: torch.Tensor, wanted: list[torch.Tensor]) -> Bench:
        return Bench(
            spec=self._assembly.spec,
            registry=default_registry(),
            path=path,
            entry=block_line(self._assembly.spec, path).entry,
            block=self._model.get_submodule(path),
            given=given,
            wanted=tuple(wanted),
        )

    def _clues(self, where: str) -> Clues:
        weight_map = self._assembly.weight_map
        assert weight_map is not None, "assembled with its weights"
        return Clues(
            config=self._assembly.config,
            hidden_size=self._assembly.spec.hidden_size,
            slots={slot.name: slot for slot in self._plan.parameters},
            weight_map=weight_map,
            where=where,
        )
