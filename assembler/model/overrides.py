"""Overrides of a conf from the command line: `conf.layers.count=2`, in Hydra's grammar.

`key=value` sets, `+key=value` adds, `++key=value` does either, `~key` removes. A key that the YAML
leaves out but the schema knows is set without a `+`. An override may reach below an interpolation
(`conf.layers.blocks.attn.rope.theta=1e6` where the YAML says `rope: ${hf_rope:}`), which is then
replaced by its value.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from assembler.errors import SpecError, did_you_mean
from assembler.model.inherit import overlay
from assembler.model.spec import LayersDocument, ModelDocument, VariantDocument

if TYPE_CHECKING:
    from hydra.core.override_parser.types import Override

PREFIX = "conf"
# Keys that are read before there is a config.json, and so before overrides.
_READ_BEFORE = {
    "checkpoint": "pass checkpoint=... instead",
    "matches": "a conf is chosen before overrides apply; pass conf=... instead",
}
Keys = Sequence[str]
Resolve = Callable[[Mapping[str, Any], Keys], Any]


def parse_overrides(lines: Sequence[str]) -> list[Override]:
    """Parse overrides of keys below `conf.`.

    Raises:
        SpecError: listing every one that is not Hydra syntax, reaches elsewhere or is a sweep.
    """
    if not lines:
        return []  # and Hydra, which takes a tenth of a second to import, is not
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import HydraException

    parser = OverridesParser.create()
    parsed, findings = [], []
    for line in lines:
        try:
            override = parser.parse_override(line)
        except HydraException as error:
            findings.append(f"'{line}' is not Hydra's override syntax: {_first_line(error)}")
            continue
        if override.package is not None or override.key_or_group.split(".")[0] != PREFIX:
            findings.append(f"'{line}' overrides nothing below '{PREFIX}.'")
        elif "." not in override.key_or_group:
            findings.append(f"'{line}': name a key below '{PREFIX}.'")
        elif key_path(override)[0] in _READ_BEFORE:
            findings.append(f"'{line}': {_READ_BEFORE[key_path(override)[0]]}")
        elif override.is_sweep_override():
            findings.append(f"'{line}': is a sweep: -m runs the command for each value")
        else:
            parsed.append(override)
    if findings:
        raise SpecError("\n".join(findings))
    return parsed


def key_path(override: Override) -> tuple[str, ...]:
    """The keys of an override below `conf.`."""
    return tuple(override.key_or_group.split(".")[1:])


def apply_override(data: dict[str, Any], override: Override, resolve: Resolve) -> None:
    """Change `data`, an unresolved conf, as one override says.

    Args:
        resolve: the value that the interpolation at some keys of `data` has.

    Raises:
        SpecError: the override names a key that is not there and that the schema does not know.
    """
    _Change(data, override, resolve).apply()


@dataclass(frozen=True)
class _Change:
    """One override on its way into a conf."""

    data: dict[str, Any]
    override: Override
    resolve: Resolve

    def apply(self) -> None:
        keys, override = key_path(self.override), self.override
        place: Any = self.data
        for depth in range(1, len(keys)):
            place = self._step(place, keys[:depth])
        last = keys[-1]
        if isinstance(place, list):
            place[self._index(place, keys)] = override.value()
        elif override.is_delete():
            if last not in place:
                raise self._unknown(keys, place)
            del place[last]
        else:
            self._check_new(place, keys)
            place[last] = overlay(place.get(last), override.value())

    def _step(self, place: Any, here: Keys) -> Any:
        """What is at `here`, below `place`: opened if interpolated, made if it may be new."""
        if isinstance(place, list):
            return place[self._index(place, here)]
        key = here[-1]
        inner = place.get(key)
        if isinstance(inner, str) and "${" in inner:
            inner = self.resolve(self.data, here)
        may_be_new = self._adds or _may_be_new(here, self.data)
        if inner is None and may_be_new and not self.override.is_delete():
            inner = {}
        if inner is None:
            raise self._unknown(here, place)
        if not isinstance(inner, Mapping | list):
            raise SpecError(f"{self}: {_dotted(here)} is {inner!r}, which has no fields")
        place[key] = dict(inner) if isinstance(inner, Mapping) else list(inner)
        return place[key]

    def _check_new(self, place: Mapping[str, Any], keys: Keys) -> None:
        if keys[-1] not in place:
            if not self._adds and not _may_be_new(keys, self.data):
                raise self._unknown(keys, place)
        elif self.override.is_add() and not isinstance(self.override.value(), dict | list):
            raise SpecError(f"{self}: it is set already; leave out the '+'")

    @property
    def _adds(self) -> bool:
        return self.override.is_add() or self.override.is_force_add()

    def _unknown(self, keys: Keys, place: Mapping[str, Any]) -> SpecError:
        known = sorted({*map(str, place), *_schema_keys(keys[:-1])})
        hint = did_you_mean(keys[-1], known)
        new = f"++{_dotted(key_path(self.override))}=..."
        return SpecError(
            f"{self}: {_dotted(keys[:-1])} has no '{keys[-1]}'.{hint} "
            f"Known there: {', '.join(known) or 'nothing'}. What is new is added with {new}"
        )

    def _index(self, items: list[Any], keys: Keys) -> int:
        key, name = keys[-1], _dotted(keys[:-1])
        if self.override.is_delete() or not key.isdigit() or int(key) >= len(items):
            raise SpecError(
                f"{self}: {name} is a list of {len(items)}: set one of them by its number from 0, "
                f"or all of it: {name}=[...]"
            )
        return int(key)

    def __str__(self) -> str:
        return f"'{self.override.input_line}'"


def _may_be_new(keys: Keys, data: Mapping[str, Any]) -> bool:
    """True for a key that a YAML may leave out although the schema has it."""
    layers = data.get("layers")
    shared = layers.get("blocks") if isinstance(layers, Mapping) else None
    match list(keys):
        case [name]:
            return name in ModelDocument.model_fields
        case ["layers", name]:
            return name in LayersDocument.model_fields
        case ["layers", "blocks", _] | ["layers", "variants", _] | ["variants", _]:
            return False
        case ["layers", "variants", _, name] | ["variants", _, name]:
            return name in VariantDocument.model_fields
        case ["layers", "variants", _, "blocks", name]:
            return isinstance(shared, Mapping) and name in shared
        case ["variants", _, "blocks", name]:
            return name in data
        case (
            ["layers", "blocks", *_]
            | ["layers", "variants", _, "blocks", *_]
            | ["variants", _, "blocks", *_]
        ):
            return True  # a block's field: its own schema checks the name afterwards
        case [name, *_]:
            return name not in ModelDocument.model_fields  # the field of a block of the model
    return False


def _schema_keys(parent: Keys) -> list[str]:
    match list(parent):
        case []:
            return [*ModelDocument.model_fields]
        case ["layers"]:
            return [*LayersDocument.model_fields]
    return []


def _dotted(keys: Keys) -> str:
    return ".".join((PREFIX, *keys))


def _first_line(error: Exception) -> str:
    return next(iter(str(error).strip().splitlines()), type(error).__name__)
