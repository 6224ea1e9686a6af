"""`${hf_rope:}`: the RoPE settings of a config.json in one normal form, whatever its dialect.

Three dialects are in use: `rope_theta` + `rope_scaling {type | rope_type, ...}` with
`partial_rotary_factor` or `rotary_pct` (transformers 4 and the hub), `rope_parameters {rope_type,
rope_theta, ...}` (transformers 5), and the latter nested per layer type, where null means no
rotation. A `rope_scaling` that is set replaces `rope_parameters`, as in transformers, and so is
ignored what the dict says for other types than its own.
"""

from __future__ import annotations

import typing
from collections.abc import Mapping
from typing import Any

from assembler.blocks.rope_settings import RopeSettings, RopeType
from assembler.errors import SpecError
from assembler.model.config_fields import ConfigFields, Missing

_THETA_FIELDS = "rope_theta|rotary_emb_base|rope_base"
_PARTIAL_FIELDS = "partial_rotary_factor|rotary_pct"
_SCALED_TO_A_PRETRAINED_LENGTH = ("llama3", "yarn", "longrope")
_NEEDS_MAX_LENGTH = ("dynamic", "longrope")
_RENAMED = {"rope_theta": "theta", "partial_rotary_factor": "partial"}
_TYPE_KEYS = ("rope_type", "type")
# Of the positions in images, which a text does not have, and of the scale of queries: they stand
# among the settings but do not rotate anything.
_NOT_ROTATION = frozenset({"mrope_section", "mrope_interleaved", "llama_4_scaling_beta"})


def rope_settings(
    fields: ConfigFields,
    layer_type: str | None = None,
    defaults: Mapping[str, Any] | None = None,
    own_theta: str | None = None,
) -> dict[str, Any] | Missing | None:
    """The settings in the normal form of `RopeSettings`, None for "no rotation".

    Args:
        fields: the checkpoint's config.
        layer_type: which entry of a per-layer-type config to read, e.g. "sliding_attention".
        defaults: settings for what the config leaves out (defaults of its model type).
        own_theta: the field in which a config that is not nested gives this layer type a theta of
            its own (Gemma 3's `rope_local_base_freq`); what else it says is then about the others.

    Raises:
        SpecError: the config holds several RoPE settings and `layer_type` names none of them.
    """
    declared = _declared(fields, layer_type, own_theta)
    if declared is None:
        return None
    settings: dict[str, Any] = {"type": _type_of(declared)}
    unused = _unused(settings["type"])
    named = {_RENAMED.get(key, key): value for key, value in declared.items()}
    settings |= {k: v for k, v in named.items() if k not in unused and v is not None}
    if own_theta is None:
        _fill(settings, "theta", fields.get(_THETA_FIELDS))
    _fill(settings, "partial", fields.get(_PARTIAL_FIELDS))
    pairs = _present(fields.get("rope_interleave"))
    if isinstance(pairs, bool):
        _fill(settings, "style", "interleaved" if pairs else "half")
    for key, value in (defaults or {}).items():
        _fill(settings, key, value)
    if "theta" not in settings:
        return Missing(_THETA_FIELDS)
    _fill_lengths(settings, fields)
    return settings


def _declared(
    fields: ConfigFields, layer_type: str | None, own_theta: str | None
) -> Mapping[str, Any] | None:
    """The RoPE dict the config declares for this layer type ({} when it declares none)."""
    declared = _mapping(fields, "rope_scaling") or _mapping(fields, "rope_parameters") or {}
    nested = {k: v for k, v in declared.items() if v is None or isinstance(v, Mapping)}
    if any(isinstance(v, Mapping) for v in nested.values()):
        return _nested(nested, layer_type)
    return declared if own_theta is None else {"rope_theta": _present(fields.get(own_theta))}


def _mapping(fields: ConfigFields, name: str) -> Mapping[str, Any] | None:
    value = _present(fields.get(name))
    if value is not None and not isinstance(value, Mapping):
        raise SpecError(f"'{name}' in {fields.source} must be a mapping, not {value!r}")
    return value


def _nested(nested: Mapping[str, Any], layer_type: str | None) -> Mapping[str, Any] | None:
    if layer_type in nested:
        return nested[layer_type]
    distinct = [v for i, v in enumerate(nested.values()) if v not in list(nested.values())[:i]]
    if layer_type is None and len(distinct) == 1:
        return distinct[0]
    kinds = ", ".join(f"'{kind}'" for kind in nested)
    asked = f"'{layer_type}' is not among them" if layer_type else "none is named"
    raise SpecError(
        f"config.json gives RoPE settings per layer type ({kinds}) and {asked}: "
        f"write ${{hf_rope:{next(iter(nested))}}} in the variant of that kind"
    )


def _type_of(declared: Mapping[str, Any]) -> str:
    kind = next((declared[key] for key in _TYPE_KEYS if declared.get(key)), "default")
    # Phi-3 called LongRoPE "su" and, in later files, "yarn"; its factor lists tell it apart.
    if kind == "su" or (kind == "yarn" and "long_factor" in declared):
        return "longrope"
    if kind == "mrope":  # rotates in three axes, which are one for text
        return "default"
    # Hunyuan calls "dynamic" what an alpha makes constant.
    return "ntk_alpha" if kind == "dynamic" and declared.get("alpha") else kind


def _unused(kind: str) -> frozenset[str]:
    """Keys of a RoPE dict of this type that say nothing about the rotation of a text."""
    others = frozenset()
    if kind in typing.get_args(RopeType):
        others = RopeSettings.model_fields.keys() - RopeSettings.used_by(kind)
    return _NOT_ROTATION | others | set(_TYPE_KEYS)


def _fill(settings: dict[str, Any], key: str, value: Any) -> None:
    if key not in settings and _present(value) is not None:
        settings[key] = value


def _fill_lengths(settings: dict[str, Any], fields: ConfigFields) -> None:
    """Add the context lengths that the scaled types compute with."""
    longest = _present(fields.get("max_position_embeddings"))
    if settings["type"] in _SCALED_TO_A_PRETRAINED_LENGTH:
        # At the top level it is the pretrained length whatever the dict says (Phi-3).
        original = _present(fields.get("original_max_position_embeddings"))
        if original is not None:
            settings["original_max_position_embeddings"] = original
        _fill(settings, "original_max_position_embeddings", longest)
    if settings["type"] in _NEEDS_MAX_LENGTH:
        _fill(settings, "max_position_embeddings", longest)


def _present(value: Any) -> Any:
    return None if isinstance(value, Missing) else value
