"""One draft: a parent changed until it agrees with the tensors, and how far that got."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from torch import nn

from assembler.drafting.anatomy import Anatomy
from assembler.drafting.attention_changes import change_attention
from assembler.drafting.comparison import Comparison
from assembler.drafting.fields import (
    name_by_value,
    rename_fields,
    supply_missing,
    widen_assumptions,
)
from assembler.drafting.forward_changes import change_forward
from assembler.drafting.kinds_of_layers import name_one_kind, settle_kinds
from assembler.drafting.library import Shipped, fields_read, meaningful
from assembler.drafting.map_changes import MapDraft, MapDrafter
from assembler.drafting.norm_changes import change_layer_norms
from assembler.drafting.outside_changes import change_outside
from assembler.drafting.scales import settle_scales
from assembler.drafting.sheet import Sheet
from assembler.drafting.wiring_changes import change_layer_wiring, change_model_wiring
from assembler.errors import AssemblerError, SpecError
from assembler.model.build import build_model
from assembler.model.compose import load_spec
from assembler.model.config_fields import ConfigFields
from assembler.model.spec import ModelSpec
from assembler.weights.index import CheckpointIndex

_ROUNDS = 5
_NOT_BUILT = 10_000  # findings: worse than any that was
_CHANGES = (
    change_attention,
    change_layer_norms,
    change_forward,
    change_outside,
    change_layer_wiring,
    change_model_wiring,
)


@dataclass
class Attempt:
    """What became of one parent."""

    parent: Shipped
    sheet: Sheet
    nearness: float
    index: CheckpointIndex
    anatomy: Anatomy
    spec: ModelSpec | None = None
    map: MapDraft | None = None
    error: str = ""
    unplaced: list[str] = field(default_factory=list)

    @property
    def config(self) -> dict[str, Any]:
        """The fields of the language model."""
        text = self.index.config.get("text_config")
        return {**self.index.config, **(text if isinstance(text, Mapping) else {})}

    @property
    def complete(self) -> bool:
        """Whether every tensor has its use and every parameter its source."""
        return self.map is not None and not self.map.plan.errors

    @property
    def order(self) -> tuple:
        """What the best of several is the least of: findings, then unlikeness.

        Changes that tensors prove cost little; a field that nothing reads costs more, since what
        it means is lost. Of parents that are equally near the one that most build on is the usual.
        """
        findings = len(self.map.plan.errors) if self.map else _NOT_BUILT
        changes = len(self.sheet.why) + (self.map.changed if self.map else 0)
        cost = len(self.unplaced) + 0.1 * changes - _worth(self.parent, self.nearness)
        return (findings, cost, self.parent.name)

    def beats(self, parent: Shipped, nearness: float) -> bool:
        """Whether this one stays ahead even if `parent` needed no change at all."""
        return self.complete and self.order[1] <= -_worth(parent, nearness)


def _worth(parent: Shipped, nearness: float) -> float:
    return 10 * nearness + 0.2 * math.log1p(parent.heirs)


class Workbench:
    """What all attempts at one checkpoint share."""

    def __init__(
        self,
        index: CheckpointIndex,
        anatomy: Anatomy,
        roots: Sequence[Path],
        folder: Path,
        name: str,
    ) -> None:
        self.index, self.anatomy, self.name = index, anatomy, name
        self.folder, self.roots = folder, tuple(roots)

    def attempt(self, parent: Shipped, nearness: float) -> Attempt:
        """Change `parent` until it agrees with the tensors, or nothing more is known to change."""
        fields = ConfigFields(self.index.config)
        sheet = Sheet(parent, fields)
        result = Attempt(parent, sheet, nearness, self.index, self.anatomy)
        try:
            self._prepare(sheet)
            result.spec, model = self._settle(sheet)
            drafter = MapDrafter(
                parent.weight_map, self.anatomy, self.index, self.folder, self.name, self.roots
            )
            result.map = drafter.draft(model)
        except AssemblerError as error:
            result.error = str(error)
        result.unplaced = self.unplaced(sheet)
        return result

    def _prepare(self, sheet: Sheet) -> None:
        rename_fields(sheet)
        name_by_value(sheet, self.anatomy)
        widen_assumptions(sheet)
        settle_kinds(sheet)
        name_one_kind(sheet)
        supply_missing(sheet, self.anatomy)
        settle_scales(sheet, self.anatomy)

    def _settle(self, sheet: Sheet) -> tuple[ModelSpec, nn.Module]:
        """Change the draft until its model has the parameters that the tensors are for."""
        for _ in range(_ROUNDS):
            spec = model = None
            problem: SpecError | None = None
            try:
                spec = load_spec(self.write_conf(sheet), self.index.config, roots=self.roots)
                model = build_model(spec)
            except SpecError as error:
                problem = error
            before = str(sheet.changes)
            self._change(sheet, spec, model)
            if str(sheet.changes) == before:
                break
        else:
            spec = load_spec(self.write_conf(sheet), self.index.config, roots=self.roots)
            return spec, build_model(spec)
        if problem is not None:
            raise problem
        return spec, model

    def _change(self, sheet: Sheet, spec: ModelSpec | None, model: nn.Module | None) -> None:
        """One round of changes."""
        inside, outside = parameters_of(model) if model is not None else ({}, set())
        found = Comparison(sheet, self.anatomy, spec, inside, outside)
        for change in _CHANGES:
            change(found)
        if spec is None:
            name_one_kind(sheet)
            supply_missing(sheet, self.anatomy)

    def write_conf(self, sheet: Sheet) -> Path:
        """The conf as it stands, in the folder of attempts."""
        path = self.folder / "conf" / f"{self.name}.yaml"
        path.parent.mkdir(parents=True, exist_ok=True)
        data = {"defaults": [sheet.parent.name, "_self_"], "weight_map": self.name, **sheet.changes}
        path.write_text(yaml.safe_dump(data, sort_keys=False))
        return path

    def unplaced(self, sheet: Sheet) -> list[str]:
        """Fields of config.json that may matter, and that the draft does not read."""
        read = fields_read(sheet.data)
        fields = Attempt(sheet.parent, sheet, 0.0, self.index, self.anatomy).config
        return [key for key in meaningful(fields) if key not in read and key != "text_config"]


def parameters_of(model: nn.Module) -> tuple[dict[int, set[str]], set[str]]:
    """The names of a model's parameters: by layer, below it; and outside of the layers."""
    inside: dict[int, set[str]] = {}
    outside: set[str] = set()
    for path, module in model.named_modules():
        for leaf, parameter in module._parameters.items():
            if parameter is None or (leaf == "weight" and getattr(module, "tied", None) is True):
                continue
            name = f"{path}.{leaf}" if path else leaf
            found = re.match(r"layers\.(\d+)\.(.+)", name)
            if found:
                inside.setdefault(int(found[1]), set()).add(found[2])
            else:
                outside.add(name)
    return inside, outside
