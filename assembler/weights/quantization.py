"""Which tensors of a quantised checkpoint belong together: what config.json and the map say of it.

config.json names a method (`quantization_config.quant_method`); a method stores weights in one of a
few formats, each with its own names for values and scales. Both methods and names can be declared
by a map (`quantization:`), and for one rule by the rule (`dequantize:`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from assembler.errors import WeightMapError, did_you_mean
from assembler.weights.yaml_marks import Marked

SCHEME_KEYS = ("format", "values", "scales", "block")


@dataclass(frozen=True)
class Scheme:
    """A format, and the names of its two tensors behind the name of the weight that they make."""

    format: str
    values: str = ""
    scales: tuple[str, ...] = ()  # the first that is there
    block: tuple[int, int] | None = None  # rows and columns that share a scale; None: config.json
    ignored: tuple[tuple[str, str], ...] = ()  # (glob, why) of what quantised arithmetic needs


_ACTIVATIONS = "activations are not quantised here"
_CACHE = "a scale of an 8-bit KV cache, beside no attention of this model"

# `X.weight` with `X.weight_scale_inv` (DeepSeek-V3, transformers) or `X.weight_scale` (vLLM,
# compressed-tensors); `X_blocks` with `X_scales` (gpt-oss).
FORMATS: dict[str, Scheme] = {
    "fp8": Scheme(
        "fp8",
        scales=("_scale_inv", "_scale"),
        ignored=(
            ("*.input_scale", _ACTIVATIONS),
            ("*.activation_scale", _ACTIVATIONS),
            ("*.k_scale", _CACHE),
            ("*.v_scale", _CACHE),
            ("*.q_scale", _ACTIVATIONS),
            ("*.prob_output_scale", _ACTIVATIONS),
        ),
    ),
    "mxfp4": Scheme("mxfp4", values="_blocks", scales=("_scales",)),
}

# `quant_method` -> its format.
METHODS = {"fp8": "fp8", "compressed-tensors": "fp8", "mxfp4": "mxfp4"}


@dataclass(frozen=True)
class UnknownMethod:
    """A method of config.json that no format is known for."""

    name: str
    message: str
    hint: str = ""


def parse_scheme(value: Any, fail: Callable[[str], Exception]) -> Scheme:
    """A format's name, or a mapping with `format` and what differs from its usual names.

    `fail` makes the exception to raise from a message.
    """
    options = value if isinstance(value, dict) else {"format": value}
    for key in options:
        if key not in SCHEME_KEYS:
            rest = f"it has {', '.join(SCHEME_KEYS)}.{did_you_mean(key, SCHEME_KEYS)}"
            raise fail(f"unknown option '{key}'; {rest}")
    name = options.get("format")
    if not isinstance(name, str) or name not in FORMATS:
        hint = did_you_mean(str(name), FORMATS)
        raise fail(f"a format is {' or '.join(FORMATS)}, not {name!r}.{hint}")
    scheme = FORMATS[name]
    if "values" in options:
        if not isinstance(options["values"], str):
            raise fail(f"'values' is the end of a name, not {options['values']!r}")
        scheme = replace(scheme, values=options["values"])
    if "scales" in options:
        ends = options["scales"] if isinstance(options["scales"], list) else [options["scales"]]
        if not ends or not all(isinstance(end, str) and end for end in ends):
            raise fail(f"'scales' is the end of a name or a list of such, not {ends!r}")
        scheme = replace(scheme, scales=tuple(ends))
    if "block" in options:
        if name != "fp8" or not _is_block(options["block"]):
            raise fail("'block' is [rows, columns] that share a scale, of the format fp8")
        scheme = replace(scheme, block=tuple(options["block"]))
    return scheme


def parse_quantization(chain: Sequence[Marked]) -> dict[str, Scheme]:
    """The `quantization` entries of a map and those it extends, by method; derived maps win."""
    found: dict[str, Scheme] = {}
    for marked in reversed(chain):
        for method, value in (marked.data.get("quantization") or {}).items():
            where = marked.where("quantization", method)

            def fail(message: str, where: str = where, method: str = method) -> Exception:
                return WeightMapError(f"{where}: quantization: {method}: {message}")

            found[str(method)] = parse_scheme(value, fail)
    return found


def read_scheme(
    config: Mapping[str, Any], declared: Mapping[str, Scheme]
) -> Scheme | UnknownMethod | None:
    """What config.json says of its weights; None if they are not quantised.

    `declared` are the methods of the map, which come before the known ones.
    """
    settings = _settings(config)
    if settings is None:
        return None
    method = str(settings.get("quant_method"))
    known = sorted({*declared, *METHODS})
    if method in declared:
        scheme = declared[method]
    elif method in METHODS:
        scheme = FORMATS[METHODS[method]]
        if method == "compressed-tensors" and (strange := _not_float8(settings)):
            message = f"is quantised with '{method}' as {strange}; only 8-bit floats can be read"
            return UnknownMethod(method, message)
    else:
        message = f"is quantised with '{method}'; known are {', '.join(known)}"
        return UnknownMethod(method, message, did_you_mean(method, known))
    if scheme.format == "fp8" and scheme.block is None:
        scheme = replace(scheme, block=_block(settings))
    return scheme


def _settings(config: Mapping[str, Any]) -> Mapping[str, Any] | None:
    inner = config.get("text_config")
    for holder in (config, inner if isinstance(inner, Mapping) else {}):
        settings = holder.get("quantization_config")
        if isinstance(settings, Mapping) and settings:
            return settings
    return None


def _groups(settings: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """How compressed-tensors says it stores weights, one entry a group of modules."""
    groups = settings.get("config_groups")
    groups = groups.values() if isinstance(groups, Mapping) else ()
    weights = [group.get("weights") for group in groups if isinstance(group, Mapping)]
    return [entry for entry in weights if isinstance(entry, Mapping)]


def _not_float8(settings: Mapping[str, Any]) -> str:
    """What compressed-tensors stores that is not 8-bit floats; "" if that is all."""
    for entry in _groups(settings):
        bits, kind, strategy = (entry.get(key) for key in ("num_bits", "type", "strategy"))
        if (bits, kind) != (8, "float"):
            return f"{bits}-bit {kind} weights"
        if strategy not in ("tensor", "channel", "block"):
            return f"8-bit float weights with scales by {strategy}"
    return ""


def _block(settings: Mapping[str, Any]) -> tuple[int, int] | None:
    """The block of config.json; None where scales are by tensor or by row."""
    found = [settings.get("weight_block_size")]
    found += [entry.get("block_structure") for entry in _groups(settings)]
    return next((tuple(block) for block in found if _is_block(block)), None)


def _is_block(value: Any) -> bool:
    return (
        isinstance(value, list)
        and len(value) == 2
        and all(isinstance(n, int) and not isinstance(n, bool) and n > 0 for n in value)
    )
