"""Two models side by side on the same tokens: what each layer and block of both was given and gave.

Streams and blocks go by our names; `Pairing` says which of the reference's modules they are.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import fx, nn

from assembler.loading import logits
from assembler.model.build import LAYERS
from assembler.verifying.compare import nearest
from assembler.verifying.pairs import Pair, Pairing, watched
from assembler.verifying.reference import Reference
from assembler.verifying.trace import ModuleCall, recorded
from assembler.weights.plan import LoadPlan

_FIRST = f"{LAYERS}.0"


@dataclass(frozen=True)
class Stretch:
    """A layer, or what comes before the first or after the last."""

    name: str  # "layers.3", or "" where it is the model's own blocks
    is_begin: bool  # before the first layer
    blocks: tuple[str, ...]  # in the order they run
    begins: Mapping[str, torch.Tensor]  # the reference's streams, by our names
    ours: tuple[torch.Tensor, ...]  # the result
    theirs: tuple[torch.Tensor, ...]  # the reference's, one of which it should be; () is unknown


class SideBySide:
    """Both models' traces."""

    def __init__(
        self, model: fx.GraphModule, reference: Reference, plan: LoadPlan, ids: torch.Tensor
    ) -> None:
        """`plan` is one whose sources have the names by which the reference's tensors are known."""
        self._streams, self._count = model.spec.streams, len(model.layers)
        blocks = _blocks(model)
        pairing = Pairing(plan, reference)
        self.pairs = pairing.pairs(blocks)
        self.layers = pairing.layers(self._count)
        layers = [f"{LAYERS}.{i}" for i in range(self._count)]
        with recorded(model, [*blocks, *layers]) as ours, torch.no_grad():
            self._logits = logits(model, ids)
        modules = [*watched(self.pairs.values()), *self.layers.values()]
        self.ours, self._theirs = ours, reference.trace(ids, modules)
        self._their_logits = reference.logits(ids)

    def stretches(self) -> list[Stretch]:
        """The model in order, cut where layers begin and end."""
        own = [name for name in self.ours if not name.startswith(f"{LAYERS}.")]
        order = list(self.ours)
        before = [name for name in own if order.index(name) < order.index(_FIRST)]
        after = tuple(name for name in own if name not in before)
        first = self._theirs.get(self.layers.get(_FIRST, ""))
        begin, end = (first.streams if first else ()), ()
        stretches = [Stretch("", True, tuple(before), {}, self.ours[_FIRST].streams, begin)]
        for i in range(self._count):
            path = f"{LAYERS}.{i}"
            call = self._theirs.get(self.layers.get(path, ""))
            inside = tuple(name for name in order if name.startswith(f"{path}."))
            begins = self._named(self.ours[path].streams, call.streams if call else ())
            ours = self.ours[path].outputs
            end = call.outputs if call else ()
            stretches.append(Stretch(path, False, inside, begins, ours, end))
        begins = self._named(self.ours[path].outputs, end)
        theirs = (self._their_logits,)
        stretches.append(Stretch("", False, after, begins, (self._logits,), theirs))
        return stretches

    def _named(
        self, ours: Sequence[torch.Tensor], theirs: Sequence[torch.Tensor]
    ) -> dict[str, torch.Tensor]:
        """The reference's streams by the names they have in our equations."""
        names = self._streams
        found = {name: nearest(mine, theirs) for name, mine in zip(names, ours, strict=False)}
        return {name: tensor for name, tensor in found.items() if tensor is not None}

    def wanted(self, pair: Pair) -> list[torch.Tensor]:
        """What the block may give: its module's output, also without the residual added to it."""
        outputs = []
        last = self._theirs.get(pair.leaves[-1])
        for call in (self._theirs.get(pair.module) if pair.whole else None, last):
            if call is None:
                continue
            for output in call.outputs:
                outputs.append(output)
                outputs += [output - x for x in call.streams if x.shape == output.shape]
        return outputs

    def uncompared(self, stretch: Stretch) -> list[str]:
        """The blocks of a stretch for which the reference shows nothing alike."""
        found = []
        for name in stretch.blocks:
            pair, outputs = self.pairs.get(name), self.ours[name].outputs
            wanted = [] if pair is None else self.wanted(pair)
            if not outputs or nearest(outputs[0], wanted) is None:
                found.append(name)
        return found

    def given(self, pair: Pair, mine: ModuleCall) -> torch.Tensor | None:
        """What the reference gives to the block; token ids are the same on both sides."""
        if not mine.streams:
            return mine.inputs[0] if mine.inputs else None
        call = self._theirs.get(pair.module if pair.whole else pair.leaves[0])
        return None if call is None else nearest(mine.streams[0], call.streams)

    def terms(self, stretch: Stretch, but: str = "") -> dict[str, torch.Tensor]:
        """What the reference may have added up: its streams, and what its blocks give."""
        terms = dict(stretch.begins)
        for name in stretch.blocks:
            pair = self.pairs.get(name)
            outputs = self.wanted(pair) if pair is not None and name != but else []
            found = nearest(self.ours[name].outputs[0], outputs) if outputs else None
            if found is not None:
                terms[f"{name.rpartition('.')[2]}(...)"] = found
        return terms


def _blocks(model: fx.GraphModule) -> dict[str, nn.Module]:
    """The blocks that equations call: the model's own and those of every layer."""
    blocks = {name: module for name, module in model.named_children() if name != LAYERS}
    for i, layer in enumerate(model.layers):
        blocks |= {f"{LAYERS}.{i}.{name}": block for name, block in layer.named_children()}
    return blocks
