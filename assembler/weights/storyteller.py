"""Tells a tensor's story from plans, which are made from headers; it opens no file."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from assembler.blocks.parallel import TensorParallel
from assembler.errors import CheckpointError
from assembler.weights.claims import PLAIN_DTYPES
from assembler.weights.finding import Finding
from assembler.weights.fold import covers_any
from assembler.weights.index import CheckpointIndex
from assembler.weights.ops import Narrow, Unsqueeze
from assembler.weights.parameters import ParameterSlot
from assembler.weights.pieces import Piece
from assembler.weights.plan import LoadPlan
from assembler.weights.quantized import loss_of, tensors_of
from assembler.weights.story import Applied, Flow, Into, OnDisk, RankShare, Step, TensorStory
from assembler.weights.story_names import Asked, find_names
from assembler.weights.tensor_info import TensorInfo
from assembler.weights.weight_map import WeightMap
from assembler.weights.write_back import RuleLookup
from assembler.weights.yaml_marks import display_path


@dataclass(frozen=True)
class Storyteller:
    """What stories are told from.

    `plan` is that of the whole model; `ranks` are those of all ranks of one size, in order, or
    empty where there is one rank.
    """

    weight_map: WeightMap
    index: CheckpointIndex
    plan: LoadPlan
    ranks: Sequence[LoadPlan] = ()

    def tell(self, name: str) -> TensorStory:
        """The story of a tensor, a parameter, a module or a part of a fused parameter.

        Raises:
            CheckpointError: neither side knows the name; the nearest of both are in the message.
        """
        asked = find_names(name, self.plan, self._tensors)
        if not asked.tensor and not asked.parameters:
            raise CheckpointError(f"{self.plan.root}: {asked.not_found}")
        pieces = sorted(filter(asked.wants, self.plan.pieces), key=self._place)
        item = next((i for i in self.plan.ignored if i.info.name == asked.tensor), None)
        info = self._tensors.get(asked.tensor)
        return TensorStory(
            name=asked.full,
            sides=asked.sides,
            checkpoint=str(self.plan.root),
            weight_map=self.plan.map_name,
            prefix=self.plan.prefix,
            tp_size=max(1, len(self.ranks)),
            flows=tuple(map(self._flow, pieces)),
            on_disk=None if info is None else _on_disk(tensors_of(info)[0]),
            rule=None if pieces or item else self._rule_of(asked),
            constants=self._constants(asked),
            ties=self._ties(asked, {piece.target for piece in pieces}),
            ignored="" if item is None else item.reason,
            ignored_at=None if item is None else item.where,
            findings=self._findings(asked),
        )

    def _place(self, piece: Piece) -> tuple[int, tuple[int, ...]]:
        """Where in the model a piece goes."""
        return self._order[piece.target], tuple(span.start for span in piece.target_slice)

    def _flow(self, piece: Piece) -> Flow:
        slot = self._slots[piece.target]
        losses = filter(None, (loss_of(piece.info), *(op.loss for op in piece.ops)))
        values, *scales = map(_on_disk, tensors_of(piece.info))
        return Flow(
            source=values,
            scales=scales[0] if scales else None,
            rule=self._applied(slot.name, piece.source),
            steps=tuple(_steps(piece)),
            into=Into(
                parameter=slot.name,
                shape=slot.layout.shape,
                part=piece.part,
                rows=_rows(piece),
                split="" if slot.layout.kind == "replicated" else slot.layout.kind,
                dtype=self.plan.dtypes.get(slot.name),
            ),
            loss="; ".join(losses) or None,
            ranks=tuple(self._shares(piece, slot)),
        )

    def _shares(self, piece: Piece, slot: ParameterSlot) -> list[RankShare]:
        shares = []
        for rank, by_key in enumerate(self._rank_pieces):
            mine = by_key.get(_key(piece))
            if mine is None:
                shares.append(RankShare(rank, None, (), (), 0))
                continue
            taken = _taken(slot, mine, TensorParallel(rank, len(self.ranks)))
            shares.append(RankShare(rank, taken, _rows(mine), mine.shape, mine.nbytes))
        return shares

    def _applied(self, parameter: str, source: str | None = None) -> Applied | None:
        """The rule of a parameter, in the way that reads `source`."""
        rules = self._rules.all(parameter)
        if not rules:
            return None
        rule, ways = rules[0], rules[0].ways
        chosen = 0
        if source is not None:
            bare = self.plan.naming.in_map(source)
            names = (bare, bare.rpartition(".")[0])
            for number, way in enumerate(ways):
                if any(s.pattern.match(name) is not None for s in way.sources for name in names):
                    chosen = number
                    break
        sources = ", ".join(str(s.pattern) for s in ways[chosen].sources)
        text = f"{rule.target} ← {sources}" if source is not None else str(rule)
        maps = [display_path(file) for file in self.weight_map.files]
        file = rule.where.rpartition(":")[0]
        through = tuple(maps[: maps.index(file)]) if file in maps else ()
        way = f"{chosen + 1} of {len(ways)}" if source is not None and len(ways) > 1 else ""
        return Applied(text, rule.where, through, way)

    def _rule_of(self, asked: Asked) -> Applied | None:
        """The rule of a parameter that no tensor fills, or of one that a tensor should fill."""
        names = [slot.name for slot in asked.parameters] or self._targets_of(asked.tensor)
        return self._applied(names[0]) if names else None

    def _targets_of(self, tensor: str) -> list[str]:
        """The parameters that would take a tensor if all else were right."""
        bare = self.plan.naming.in_map(tensor)
        module, _, leaf = bare.rpartition(".")
        found = []
        for rule in self.weight_map.rules:
            patterns = [source.pattern for way in rule.ways for source in way.sources]
            for path, suffix in ((bare, ""), (module, f".{leaf}")):
                for values in (pattern.match(path) for pattern in patterns):
                    if values is not None and set(rule.target.names) <= set(values):
                        target = rule.target.fill(values) + suffix
                        found += [n for n in self._slots if n == target]
        return list(dict.fromkeys(found))

    def _constants(self, asked: Asked) -> tuple[str, ...]:
        wanted = {slot.name for slot in asked.parameters}
        return tuple(
            f"{''.join(f'rows {s.start}:{s.stop} of ' for s in c.target_slice)}{c.target} = "
            f"{c.value:g}"
            for c in self.plan.constants
            if c.target in wanted
        )

    def _ties(self, asked: Asked, filled: Collection[str]) -> tuple[str, ...]:
        lines = [
            f"{slot.name} shares the memory of {slot.tied_to}"
            for slot in self.plan.parameters
            if slot.tied_to is not None and (slot in asked.parameters or slot.tied_to in filled)
        ]
        for tie in self.plan.ties:
            if tie.source == asked.tensor or tie.target in {s.name for s in asked.parameters}:
                lines.append(
                    f"{tie.source} is read only to see that it equals {tie.twin}, which fills "
                    f"{tie.tied_to}"
                )
        return tuple(lines)

    def _findings(self, asked: Asked) -> tuple[Finding, ...]:
        names = {asked.tensor, *(slot.name for slot in asked.parameters)} - {""}
        if asked.tensor:
            names.update(self._targets_of(asked.tensor))
        return tuple(
            finding
            for finding in self.plan.findings
            if covers_any(f"{finding.subject} {finding.message}", names)
        )

    @cached_property
    def _tensors(self) -> Mapping[str, TensorInfo]:
        """What is on disk, and the pairs that stand for one tensor, by the name that rules give."""
        return {**{piece.source: piece.info for piece in self.plan.pieces}, **self.index.tensors}

    @cached_property
    def _slots(self) -> Mapping[str, ParameterSlot]:
        return {slot.name: slot for slot in self.plan.parameters}

    @cached_property
    def _order(self) -> Mapping[str, int]:
        return {name: number for number, name in enumerate(self._slots)}

    @cached_property
    def _rules(self) -> RuleLookup:
        return RuleLookup(self.weight_map)

    @cached_property
    def _rank_pieces(self) -> list[dict[tuple[str, str, str], Piece]]:
        return [{_key(piece): piece for piece in plan.pieces} for plan in self.ranks]


def _key(piece: Piece) -> tuple[str, str, str]:
    return piece.source, piece.target, piece.part


def _on_disk(info: TensorInfo) -> OnDisk:
    return OnDisk(info.name, str(info.file), info.offset, info.end, info.dtype, info.shape)


def _steps(piece: Piece) -> list[Step]:
    """The ops in order, and before them what reading does to a quantised tensor."""
    steps, shape = [], piece.info.shape
    values, *scales = tensors_of(piece.info)
    if scales or values.dtype not in PLAIN_DTYPES:
        by = f" times its scales ({scales[0].dtype})" if scales else ""
        steps.append(Step(f"dequantise {values.dtype}{by} to float32", shape))
    for op in piece.ops:
        blocks = isinstance(op, Narrow) and len(shape) > 2  # neither rows nor columns
        text = f"of dim {op.dim} {op.start}:{op.stop}" if blocks else str(op)
        shape = op.shape(shape)
        steps.append(Step(text, shape))
    return steps


def _rows(piece: Piece) -> tuple[tuple[int, int, int], ...]:
    return tuple((span.dim, span.start, span.stop) for span in piece.target_slice)


def _taken(slot: ParameterSlot, piece: Piece, tp: TensorParallel) -> tuple[int, int, int] | None:
    """Which rows (or columns) of the part a rank holds; None for the whole tensor."""
    one_of_a_stack = slot.dim == 0 and any(isinstance(op, Unsqueeze) for op in piece.ops)
    if slot.layout.dim is None or one_of_a_stack:
        return None
    part = next(p for p in slot.parts if piece.part in ("", p.name))
    rows = slot.local_rows(part, tp)
    return slot.dim, rows.start, rows.stop
