"""What a block's fields say, in words short enough for a picture; every field is in the details."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from pydantic import BaseModel

from assembler.model.registry import BlockSpec


def _counted(count: int, noun: str) -> str:
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def _rope(value: Any) -> str:
    kind = "RoPE" if value.type == "default" else f"{value.type} RoPE"
    return f"{kind} θ {_round(value.theta)}"


def _round(number: float) -> str:
    """`500k`, `10M`: bases of RoPE are round numbers."""
    for unit, size in (("M", 1e6), ("k", 1e3)):
        if number >= 0.9999 * size:
            return f"{number / size:.4g}{unit}"
    return f"{number:g}"


# Fields that a picture shows, in this order, and how. Null and false say nothing.
_WORDS: Mapping[str, Callable[[Any], str]] = {
    "num_heads": lambda value: _counted(value, "head"),
    "num_kv_heads": lambda value: _counted(value, "kv head"),
    "head_dim": lambda value: f"head {value}",
    "q_lora_rank": lambda value: f"q rank {value}",
    "kv_lora_rank": lambda value: f"kv rank {value}",
    "intermediate_size": lambda value: f"width {value}",
    "activation": lambda value: value if isinstance(value, str) else "learned activation",
    "num_experts": lambda value: f"{value} experts",
    "top_k": lambda value: f"top {value}",
    "router": lambda value: f"{value.scores} router" if hasattr(value, "scores") else value.block,
    "experts": lambda value: f"width {value.intermediate_size}, {value.activation}",
    "qk_norm": lambda value: "QK-norm",
    "rope": _rope,
    "window": lambda value: f"window {value}",
    "chunk": lambda value: f"chunks of {value}",
    "softcap": lambda value: f"soft-cap {value:g}",
    "sinks": lambda value: "sinks",
    "gate": lambda value: "gated output",
    "count": lambda value: f"{value} positions",
    "tied": lambda value: "tied to the embedding",
}


def short_facts(spec: BlockSpec) -> tuple[str, ...]:
    """What a picture says about a block, most telling first."""
    values = {name: getattr(spec, name) for name in type(spec).model_fields}
    if values.get("num_kv_heads") == values.get("num_heads"):
        values["num_kv_heads"] = None
    facts = [_WORDS[name](values[name]) for name in _WORDS if values.get(name) not in (None, False)]
    if "rope" in values and values["rope"] is None:
        facts.append("no RoPE")
    if "eps" in values and values.get("offset"):  # of a norm
        facts.append("1 + weight")
    return tuple(facts)


def all_fields(spec: BlockSpec) -> tuple[tuple[str, str], ...]:
    """(field, value) of what a block's YAML says, and its defaults do not."""
    return tuple(_changed(spec, ""))


def _changed(spec: BaseModel, prefix: str) -> Iterator[tuple[str, str]]:
    for name, info in type(spec).model_fields.items():
        value = getattr(spec, name)
        if isinstance(value, BlockSpec):
            yield f"{prefix}{name}", value.block
            yield from _changed(value, f"{prefix}{name}.")
        elif isinstance(value, BaseModel):
            yield from _changed(value, f"{prefix}{name}.")
        elif name != "block" and (info.is_required() or value != info.default):
            yield f"{prefix}{name}", _shown(value)


def _shown(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, tuple) and len(value) > 8:
        return f"{len(value)} numbers"
    return str(value)
