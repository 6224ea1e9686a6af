"""The conf while it is drafted: what it changes in its parent, and why."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from assembler.drafting.library import Shipped, meaningful
from assembler.drafting.vocabulary import synonyms_of
from assembler.model.config_fields import ConfigFields, Missing
from assembler.model.inherit import overlay

KeyPath = tuple[str, ...]


@dataclass
class Sheet:
    """Changes by key path, and the comment of each line that is a guess."""

    parent: Shipped
    fields: ConfigFields
    changes: dict[str, Any] = field(default_factory=dict)
    why: dict[KeyPath, str] = field(default_factory=dict)

    @property
    def data(self) -> dict[str, Any]:
        """The whole conf, with what it inherits."""
        merged = overlay(self.parent.data, self.changes)
        assert isinstance(merged, dict)
        return merged

    def set(self, path: KeyPath, value: Any, why: str) -> bool:
        """Give `path` a value; returns whether that changes anything."""
        if self.get(path, default=_NOTHING) == value:
            return False
        place = self.changes
        for key in path[:-1]:
            if not isinstance(place.get(key), dict):
                place[key] = {}
            place = place[key]
        place[path[-1]] = copy.deepcopy(value)
        self.why[path] = why
        return True

    def get(self, path: KeyPath, default: Any = None) -> Any:
        """What stands at `path` in the whole conf."""
        value: Any = self.data
        for key in path:
            if not isinstance(value, Mapping) or key not in value:
                return default
            value = value[key]
        return value

    def set_block(self, block: str, name: str, value: Any, why: str) -> bool:
        """Set a field of a layer's block, also in the variants that set it themselves."""
        changed = self.set(("layers", "blocks", block, name), value, why)
        for variant, contents in (self.get(("layers", "variants")) or {}).items():
            own = ((contents or {}).get("blocks") or {}).get(block)
            if isinstance(own, Mapping) and name in own:
                path = ("layers", "variants", variant, "blocks", block, name)
                changed |= self.set(path, value, why)
        return changed

    def ref(self, *names: str, default: str = "") -> str | None:
        """`${hf:field}` for the first of `names` (or a synonym) that config.json has."""
        name = self.field(*names)
        if name is None:
            return None
        return f"${{hf:{name},{default}}}" if default else f"${{hf:{name}}}"

    def flag_ref(self, block: str, wanted: bool) -> Any:
        """The field of config.json that switches a block's biases as `wanted`, or that value."""
        names = ("mlp_bias",) if block != "attn" else ("attention_bias", "qkv_bias")
        for name in (*names, "use_bias", "bias"):
            if self.fields.get(name) is wanted:
                return f"${{hf:{name},{str(wanted).lower()}}}"
        return wanted

    def field(self, *names: str) -> str | None:
        """The field of config.json that says what the first of `names` (or a synonym) means."""
        for name in (n for known in names for n in synonyms_of(known)):
            value = self.fields.get(name)
            if value is not None and not isinstance(value, Missing):
                return name
        return None

    def field_of_value(self, number: int) -> str | None:
        """The field of config.json that alone has this value, unless its name says what it is."""
        config = {name: self.fields.get(name) for name in self.fields}
        same = [n for n in meaningful(config) if type(config[n]) is int and config[n] == number]
        return same[0] if len(same) == 1 and synonyms_of(same[0]) == (same[0],) else None

    def number(self, *names: str) -> int | None:
        """The value of that field, if it is a whole number."""
        name = self.field(*names)
        value = self.fields.get(name) if name else None
        return value if isinstance(value, int) and not isinstance(value, bool) else None


_NOTHING = object()
