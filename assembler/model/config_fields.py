"""Reading a checkpoint's config.json by field name, as `${hf:...}` and `${calc:...}` do.

Published configs nest the language model's fields under `text_config` in multimodal checkpoints,
call one thing by several names, and write null where a value is to be derived. This file knows
those habits of the format; which field means what is said by the YAML that asks.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

_MISSING_MARK = re.compile("\u27e8missing:(.*?)\u27e9")


class Missing:
    """A field that config.json does not have: stands in for its value until someone needs it.

    Defaults may be nested (`${hf:head_dim,${calc:'...'}}`) and the inner one is evaluated first, so
    a missing field is only an error if it is what a setting ends up with. Inside a longer string
    (a wiring equation) it leaves a mark that `missing_fields` finds.
    """

    def __init__(self, field: str) -> None:
        self.field = field

    def __str__(self) -> str:
        return f"\u27e8missing:{self.field}\u27e9"

    __repr__ = __str__


class ConfigFields:
    """The fields of one config.json; `text_config`, where there is one, is looked up first.

    `defaults` are what the fields mean that it leaves out. A field that is there, under any of the
    names it is asked for, comes before all of them, and a null is there.
    """

    def __init__(
        self,
        config: Mapping[str, Any] | None,
        source: str = "config.json",
        defaults: Mapping[str, Any] | None = None,
    ) -> None:
        self.source = source
        self.is_empty = not config
        self._defaults = dict(defaults or {})
        outer = dict(config or {})
        inner = outer.get("text_config")
        self._fields: dict[str, Any] = {**outer, **inner} if isinstance(inner, Mapping) else outer

    def with_defaults(self, defaults: Mapping[str, Any]) -> ConfigFields:
        """The same config with other defaults."""
        fields = ConfigFields(self._fields, self.source, defaults)
        fields.is_empty = self.is_empty
        return fields

    def get(self, names: str) -> Any:
        """The value of the first of `names` ("a|b|c", each may be dotted) that is there.

        A step of a dotted name is a key, or the number of an item in a list.

        A null counts as there only if no later name has a value; a field found nowhere gives a
        `Missing`.
        """
        found = self._first_of(names, self._fields)
        return self._first_of(names, self._defaults) if isinstance(found, Missing) else found

    def _first_of(self, names: str, fields: Mapping[str, Any]) -> Any:
        found: Any = Missing(names)
        for name in names.split("|"):
            value = self._one(name.strip(), fields)
            if value is None and isinstance(found, Missing):
                found = None
            elif value is not None and not isinstance(value, Missing):
                return value
        return found

    def _one(self, dotted: str, fields: Mapping[str, Any]) -> Any:
        value: Any = fields
        for key in dotted.split("."):
            if isinstance(value, list) and key.isdecimal() and int(key) < len(value):
                value = value[int(key)]
            elif isinstance(value, Mapping) and key in value:
                value = value[key]
            else:
                return Missing(dotted)
        return value

    def __contains__(self, name: str) -> bool:
        return not isinstance(self.get(name), Missing)

    def __iter__(self) -> Iterator[str]:
        return iter({**self._defaults, **self._fields})


def missing_fields(value: Any) -> list[str]:
    """Names of the config fields that `value` (a resolved YAML leaf) needed and did not get."""
    if isinstance(value, Missing):
        return [value.field]
    if isinstance(value, str):
        return _MISSING_MARK.findall(value)
    return []
