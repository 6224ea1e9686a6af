"""The weight map of a draft: the parent's, and the rules that differ from it."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import yaml
from torch import nn

from assembler.drafting.anatomy import Anatomy
from assembler.drafting.layer_parts import Piece
from assembler.weights.index import CheckpointIndex
from assembler.weights.map_options import RuleText
from assembler.weights.map_rules import Rule, parse_rule
from assembler.weights.naming import Naming
from assembler.weights.parameters import ParameterSlot, read_parameters
from assembler.weights.plan import LoadPlan, plan_load
from assembler.weights.weight_map import WeightMap, load_weight_map
from assembler.weights.yaml_marks import load_marked

_LAYER = "layers.{i}"
_LOST = ("unknown_target", "dead_rule")


@dataclass
class MapDraft:
    """The contents of the drafted map, the guesses in it, and what the planner says."""

    data: dict[str, Any]
    plan: LoadPlan
    guesses: dict[str, str] = field(default_factory=dict)  # by target
    changed: int = 0  # rules that are not the parent's


class MapDrafter:
    """Writes the map of one draft into a folder, and plans with it."""

    def __init__(
        self, parent: str, anatomy: Anatomy, index: CheckpointIndex, folder: Path, name: str,
        roots: Sequence[Path],
    ) -> None:  # fmt: skip
        self.parent, self.anatomy, self.index = parent, anatomy, index
        self.path = folder / "weight_maps" / f"{name}.yaml"
        self.name, self.roots = name, (folder, *roots)

    def draft(self, model: nn.Module) -> MapDraft:
        """The map for `model`, made to agree with it as far as the tensors do."""
        slots = read_parameters(model).slots
        targets = {_general(n) for slot in slots.values() for n in (slot.module, slot.name)}
        pieces = {t: p for t, p in self._pieces().items() if t in targets}
        data, guesses = self._nearest_base(pieces)
        changed = len(guesses)
        for _ in range(3):  # a rule taken back may show that another one is idle
            weight_map = self._load(data)
            plan = plan_load(weight_map, model, self.index)
            if not self._take_back(data, plan, weight_map):
                break
        before = str(data)
        self._split(data, weight_map, slots)
        if any(finding.kind == "unclaimed" for finding in plan.findings):
            self._leave_aside(data, weight_map)
        if str(data) != before:
            plan = plan_load(self._load(data), model, self.index)
        return MapDraft(data, plan, {t: g for t, g in guesses.items() if g}, changed)

    def _leave_aside(self, data: dict[str, Any], weight_map: WeightMap) -> None:
        """Ignore what is no part of the language model, with the reason."""
        known = {ignore.glob for ignore in weight_map.ignore}
        aside = self.anatomy.inventory.aside
        ignore = {
            p: {"reason": why, "optional": True} for p, why in aside.items() if p not in known
        }
        if ignore:
            data["ignore"] = ignore

    def _pieces(self) -> dict[str, Piece]:
        """Every piece by its target in a map."""
        return {
            f"{_LAYER}.{piece.target}" if piece.layers else piece.target: piece
            for piece in self.anatomy.parts.values()
        }

    def _nearest_base(self, pieces: Mapping[str, Piece]) -> tuple[dict[str, Any], dict[str, str]]:
        """The parent's map with other rules: as it is, or with another beginning of its names."""
        stem = f"{self.anatomy.inventory.stem}.{{i}}"
        bare = {"extends": self.parent}
        rooted = {**bare, "prefixes": [""], "weights": {_LAYER: {"from": stem}}}
        parent = load_weight_map(self.parent, self.roots)
        drafts = [
            self._with_rules(bare, parent, self._naming(parent), stem, pieces),
            self._with_rules(rooted, self._load(rooted), Naming(), stem, pieces),
        ]
        return min(drafts, key=lambda draft: len(draft[1]) + (draft[0].get("prefixes") is not None))

    def _naming(self, weight_map: WeightMap) -> Naming:
        """The naming under which most sources of a map are among the checkpoint's names."""
        inventory = self.anatomy.inventory
        ours = {tensor.module for tensor in inventory.outside}
        ours |= {f"{inventory.stem}.{{}}.{_nameless(t.module)}" for t in inventory.layer}
        sources = [s.pattern.text for r in weight_map.rules for w in r.ways for s in w.sources]

        def found(naming: Naming) -> int:
            return sum(_nameless(naming.on_disk(source)) in ours for source in sources)

        return max(weight_map.prefixes, key=found)  # the first of the best

    def _with_rules(
        self, base: dict[str, Any], weight_map: WeightMap, naming: Naming, stem: str,
        pieces: Mapping[str, Piece],
    ) -> tuple[dict[str, Any], dict[str, str]]:  # fmt: skip
        """`base` with a rule for every piece that it would fill from elsewhere."""
        theirs = {rule.target.text: rule for rule in weight_map.rules}
        start = _scope_start(weight_map)
        in_map = naming.in_map(stem)
        outer, inner = {}, {}
        guesses: dict[str, str] = {}
        for target, piece in pieces.items():
            scope = stem if piece.layers else ""
            ours = parse_rule(RuleText(target, piece.rule, scope, ""))
            if target in theirs and _same(ours, theirs[target], naming):
                continue
            guesses[target] = piece.guess
            if piece.layers:
                inner[piece.target] = piece.rule
            else:
                outer[target] = _renamed(piece.rule, naming)
        scope_data: dict[str, Any] = {}
        if (inner and start != in_map) or base.get("prefixes"):
            scope_data["from"] = in_map
        weights = {**outer, **({_LAYER: {**scope_data, **inner}} if scope_data or inner else {})}
        data = {key: value for key, value in base.items() if key != "weights"}
        return ({**data, "weights": weights} if weights else data), guesses

    def _take_back(self, data: dict[str, Any], plan: LoadPlan, weight_map: WeightMap) -> bool:
        """Null for inherited rules that fill nothing; whether there was one."""
        rules = {rule.target.text: rule for rule in weight_map.rules}
        lost = [f.subject for f in plan.findings if f.kind in _LOST and f.subject in rules]
        for target in lost:
            weights = data.setdefault("weights", {})
            if target.startswith(f"{_LAYER}."):
                weights.setdefault(_LAYER, {})[target.removeprefix(f"{_LAYER}.")] = None
            else:
                weights[target] = None
        return bool(lost)

    def _split(
        self, data: dict[str, Any], weight_map: WeightMap, slots: Mapping[str, ParameterSlot]
    ) -> None:
        """State how ranks share what the parent's map does not."""
        tp: dict[str, list[str]] = {}
        for rule in weight_map.rules:
            for slot in slots.values():
                if not (
                    rule.target.match(slot.name) is not None
                    or rule.target.match(slot.module) is not None
                ):
                    continue
                kind = slot.layout.kind
                if kind not in ("replicated", rule.tp):
                    short = rule.target.text.removeprefix(f"{_LAYER}.")
                    if short not in tp.setdefault(kind, []):
                        tp[kind].append(short)
                    break
        if tp:
            data["tp"] = tp

    def _load(self, data: Mapping[str, Any]) -> WeightMap:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.path.write_text(yaml.safe_dump(dict(data), sort_keys=False))
        return load_weight_map(self.name, self.roots)


def _same(ours: Rule, theirs: Rule, naming: Naming) -> bool:
    """Whether two rules read the same tensors in the same way."""
    return any(
        len(way.sources) == len(ours.sources)
        and all(
            _bare(a) == _bare(_on_disk(b, naming))
            for a, b in zip(ours.sources, way.sources, strict=True)
        )
        for way in theirs.ways
    )


def _on_disk(source: Any, naming: Naming) -> Any:
    """`source` with its name as the checkpoint has it."""
    return replace(
        source, pattern=replace(source.pattern, text=naming.on_disk(source.pattern.text))
    )


def _bare(source: Any) -> tuple:
    """What a source is, whatever its wildcards are called; blocks by head are those of kv heads."""
    text = _nameless(source.pattern.text)
    per = "kv_head" if source.per == "head" and len(source.parts) == 3 else source.per
    return (
        text,
        source.transpose,
        source.parts,
        per,
        str(source.rearrange and source.rearrange.text),
    )


def _nameless(text: str) -> str:
    """A name whose wildcards are all alike."""
    return re.sub(r"\{\w+\}", "{}", text)


def _renamed(rule: Any, naming: Naming) -> Any:
    if isinstance(rule, str):
        return naming.in_map(rule)
    if isinstance(rule, list):
        return [_renamed(item, naming) for item in rule]
    return {**rule, "from": _renamed(rule["from"], naming)}


def _scope_start(weight_map: WeightMap) -> str | None:
    """What the names of the map's layers begin with."""
    for path in weight_map.files:
        scope = (load_marked(path).data.get("weights") or {}).get(_LAYER)
        if isinstance(scope, dict) and isinstance(scope.get("from"), str):
            return scope["from"]
    return None


def _general(path: str) -> str:
    """`layers.{i}.attn` for `layers.3.attn`."""
    return re.sub(r"^layers\.\d+", _LAYER, path)
