"""The interpolations of the model language: `${hf:...}`, `${hf_rope:...}` and `${calc:'...'}`.

OmegaConf keeps resolvers in a table of the process. Ours hold no state: the config.json they read
is stored in the root of the composed config under a hidden key, so that two models are resolved
side by side without knowing of each other.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from omegaconf import AnyNode, DictConfig, OmegaConf

from assembler.errors import SpecError
from assembler.model import expressions
from assembler.model.config_fields import ConfigFields, Missing, missing_fields
from assembler.model.rope_config import rope_settings

_HIDDEN_KEY = "_config_fields"


def bind_config(composed: DictConfig, fields: ConfigFields) -> None:
    """Let the interpolations below the root `composed` read `fields`."""
    composed._set_flag(["struct", "readonly"], [False, False])
    composed._set_item_impl(_HIDDEN_KEY, AnyNode(fields, flags={"allow_objects": True}))


def _fields(root: DictConfig) -> ConfigFields:
    node = root._get_node(_HIDDEN_KEY)
    assert node is not None, "bind_config comes before resolving"
    return node._value()  # type: ignore[union-attr]


def _hf(*args: Any, _root_: DictConfig) -> Any:
    """`${hf:field}` / `${hf:field,default}`: with a default, null counts as absent."""
    names, default = args[:1], args[1:]
    if not all(isinstance(name, str) and name for name in names) or not names:
        raise SpecError("${hf:...} takes the name of a field of config.json")
    if len(default) > 1:
        raise SpecError(f"${{hf:{names[0]},...}} takes one default, not {len(default)}")
    value = _fields(_root_).get(names[0])
    if default and (value is None or isinstance(value, Missing)):
        return default[0]
    return value


def _hf_rope(*args: Any, _root_: DictConfig) -> Any:
    """`${hf_rope:}`, `${hf_rope:kind}`, `${hf_rope:null,{theta: 1e4}}`, `${hf_rope:k,{},field}`."""
    layer_type, defaults, own_theta = (*(a or None for a in args), None, None, None)[:3]
    if len(args) > 3 or not isinstance(defaults, Mapping | None):
        raise SpecError(
            "${hf_rope:...} takes a layer type, a mapping of defaults and the field with a theta "
            "of that layer type's own, all of them optional"
        )
    return rope_settings(_fields(_root_), layer_type, defaults, own_theta)


def _calc(*args: Any, _root_: DictConfig) -> Any:
    """`${calc:'expr'}`: arithmetic over the fields of config.json; absent fields stay absent."""
    if len(args) != 1:
        raise SpecError("${calc:...} takes one expression, in quotes: ${calc:'max(a, b)'}")
    if absent := missing_fields(text := str(args[0])):
        return Missing(absent[0])
    fields = _fields(_root_)

    def name(field: str) -> Any:
        value = fields.get(field)
        if isinstance(value, Missing):
            raise _AbsentField(value)
        return value

    try:
        return expressions.evaluate(expressions.parse(text), name)
    except _AbsentField as absent_field:
        return absent_field.missing


class _AbsentField(Exception):
    """Ends the computation of something that needs a field config.json does not have."""

    def __init__(self, missing: Missing) -> None:
        super().__init__(missing.field)
        self.missing = missing


RESOLVERS = {"hf": _hf, "hf_rope": _hf_rope, "calc": _calc}


def register_resolvers() -> None:
    """Make the three interpolations known to OmegaConf (idempotent)."""
    for name, resolver in RESOLVERS.items():
        OmegaConf.register_new_resolver(name, resolver, replace=True)
