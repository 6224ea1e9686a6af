"""The scales of an 8-bit KV cache that a checkpoint brings: which tensors they are, their values.

A calibrated release holds what 1 in a cache of float8 e4m3 stands for: for each attention a number
for the keys and one for the values. They lie beside the tensors that make keys and values, under
names of a few kinds: those of vLLM, compressed-tensors, ModelOpt, Quark and Hunyuan. A weight map
declares others under `cache_scales`. They are no parameters: caches of other types need none.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from assembler.errors import CheckpointError, WeightMapError, did_you_mean
from assembler.weights.index import CheckpointIndex, TensorInfo
from assembler.weights.issues import Issue
from assembler.weights.pieces import Piece
from assembler.weights.yaml_marks import Marked

KINDS = ("k", "v")
NOT_NEEDED = "of an 8-bit KV cache; not needed: the cache is as the weights (kv_cache_dtype=auto)"
LATENT = "a scale of cached values; not needed: these are a part of the keys, which have their own"
DTYPES = ("F32", "F16", "BF16")

# Behind the module around the one, {proj}, whose tensor makes the keys (values); the first counts.
NAMES: Mapping[str, tuple[str, ...]] = {
    "k": (
        *("k_scale", "attn.k_scale", "{proj}.k_scale", "{proj}.output_scale"),
        *("k_cache.scale", "kv_scale"),
    ),
    "v": (
        *("v_scale", "attn.v_scale", "{proj}.v_scale", "{proj}.output_scale"),
        *("v_cache.scale", "kv_scale"),
    ),
}

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class CacheScale:
    """The tensor that holds one scale of one attention block."""

    block: str  # path of the module
    kind: str  # of `KINDS`
    info: TensorInfo


@dataclass(frozen=True)
class CacheScales:
    """Those of a checkpoint: to be read, or left aside with a reason."""

    wanted: tuple[CacheScale, ...]
    aside: Mapping[str, str]  # tensor -> why
    issues: tuple[Issue, ...]
    names: frozenset[str]  # of all these tensors


def parse_cache_scales(chain: Sequence[Marked]) -> dict[str, tuple[str, ...]]:
    """The `cache_scales` of a map and those it extends, by kind; derived maps win, then `NAMES`."""
    found = dict(NAMES)
    for marked in reversed(chain):
        for kind, value in (marked.data.get("cache_scales") or {}).items():
            where = marked.where("cache_scales", kind)
            if kind not in KINDS:
                hint = did_you_mean(str(kind), KINDS)
                raise WeightMapError(f"{where}: cache_scales has k and v, not '{kind}'.{hint}")
            names = [value] if isinstance(value, str) else value
            known = isinstance(names, list) and all(isinstance(n, str) and n for n in names)
            if not known or not names:
                raise WeightMapError(
                    f"{where}: cache_scales: '{kind}' is the name of a tensor or a list of such, "
                    f"from the module around the projection ({{proj}}) on; not {value!r}"
                )
            found[kind] = tuple(names)
    return found


def find_cache_scales(
    model: nn.Module,
    pieces: Iterable[Piece],
    tensors: Mapping[str, TensorInfo],
    names: Mapping[str, tuple[str, ...]],
    wanted: bool,
) -> CacheScales:
    """The scales in `tensors` of each attention block, by what fills its keys and values.

    Args:
        names: by kind, as of `parse_cache_scales`.
        wanted: whether the KV cache is one of 8 bits; else all are left aside.
    """
    sources = {(piece.target, piece.part): piece.source for piece in pieces}
    scales: list[CacheScale] = []
    lacking: list[tuple[str, str]] = []  # (block, kind)
    aside: dict[str, str] = {}
    for path, block in model.named_modules():
        parts = block.cached_parts() if hasattr(block, "cached_parts") else {}
        for kind, (leaf, part) in parts.items():
            target = f"{path}.{leaf}"
            source = sources.get((target, part)) or sources.get((target, ""))
            info = None if source is None else _beside(source, tensors, names[kind])
            if not wanted or (kind == "v" and block.cache_spec().latent):
                if info is not None:
                    aside.setdefault(info.name, LATENT if wanted else NOT_NEEDED)
            elif info is None:
                lacking.append((path, kind))
            else:
                scales.append(CacheScale(path, kind, info))
    read = {scale.info.name for scale in scales}
    aside = {name: why for name, why in aside.items() if name not in read}  # one for k and v
    issues = (*_unfit(scales), *_half(scales, lacking))
    return CacheScales(tuple(scales), aside, issues, frozenset(read | {*aside}))


def apply_cache_scales(
    scales: Sequence[CacheScale], model: nn.Module, index: CheckpointIndex
) -> None:
    """Read the scales and hand them to their blocks, as `k_scale` and `v_scale`.

    Raises:
        CheckpointError: some are no positive numbers, each with its file.
    """
    problems = []
    for scale in scales:
        value = float(index.read_info(scale.info).float().reshape(()))
        if not (math.isfinite(value) and value > 0):
            where = f"{scale.info.name} ({scale.info.file})"
            problems.append(f"  {where}: a scale of the KV cache is a positive number, not {value}")
        setattr(model.get_submodule(scale.block), f"{scale.kind}_scale", value)
    if problems:
        hint = "  Take another release, or kv_cache_dtype=auto, which needs no scales."
        raise CheckpointError("\n".join([f"{index.root} cannot be loaded:", *problems, hint]))
    if scales:
        _log.info("KV cache of 8 bits: %d scales of the checkpoint", len(scales))
    else:
        _log.info("KV cache of 8 bits: the checkpoint has no scales for it; they are 1")


def _beside(
    source: str, tensors: Mapping[str, TensorInfo], names: Iterable[str]
) -> TensorInfo | None:
    """The first of `names` that lies beside the tensor `source`."""
    projection = source.rpartition(".")[0]
    around, dot, last = projection.rpartition(".")
    for name in names:
        info = tensors.get(f"{around}{dot}{name.replace('{proj}', last)}")
        if info is not None:
            return info
    return None


def _unfit(scales: Iterable[CacheScale]) -> Iterable[Issue]:
    for info in {scale.info.name: scale.info for scale in scales}.values():
        where = str(info.file)
        if math.prod(info.shape) != 1:
            message = f"has the shape {list(info.shape)}; a scale of the KV cache is one number"
            yield Issue("shape", info.name, message, (), where)
        elif info.dtype not in DTYPES:
            message = f"is stored as {info.dtype}; a scale of the KV cache is {', '.join(DTYPES)}"
            yield Issue("dtype", info.name, message, (), where)


def _half(scales: Sequence[CacheScale], lacking: Iterable[tuple[str, str]]) -> Iterable[Issue]:
    """A checkpoint that has some scales has all."""
    if not scales:
        return
    where = str(scales[0].info.file)
    for path, kind in lacking:
        message = f"the checkpoint has {scales[0].info.name}, but no such scale for this"
        hint = "kv_cache_dtype=auto needs no scales."
        yield Issue("missing", f"{path}.{kind}_scale", message, (), where, hint)


def cache_scale_schema(name: Mapping[str, Any], names: Mapping[str, Any]) -> dict[str, Any]:
    """The JSON Schema of `cache_scales`, from those of a name and of a list of names."""
    return {
        "type": "object",
        "properties": {kind: {"anyOf": [name, names]} for kind in KINDS},
        "additionalProperties": False,
        "description": "Names of the scales of an 8-bit KV cache, beside the {proj} of the keys.",
    }
