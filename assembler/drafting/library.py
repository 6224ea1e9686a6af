"""The architectures that there are, and how near each is to a checkpoint.

Nearness is looked up, not built: shared fields of config.json, the tensors that a weight map
already names as the checkpoint does, the modules that both have, and what the types are called.
"""

from __future__ import annotations

import difflib
import re
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from assembler.drafting.anatomy import Anatomy
from assembler.drafting.vocabulary import SILENT, synonyms_of
from assembler.errors import AssemblerError
from assembler.model.conf_files import ancestry, conf_names, find_conf
from assembler.model.inherit import overlay
from assembler.model.parse import leaves
from assembler.weights.weight_map import load_weight_map

_FIELD = re.compile(r"\$\{hf:([^,{}$]+)")
_CALC = re.compile(r"\$\{calc:'(.*?)'\}")
_WORD = re.compile(r"(?<![\w.\"'])[A-Za-z_]\w*")
_ROPE_FIELDS = (
    "rope_theta", "rotary_emb_base", "rope_base", "rope_scaling", "rope_parameters",
    "partial_rotary_factor", "rotary_pct", "max_position_embeddings",
    "original_max_position_embeddings", "rope_interleave",
)  # fmt: skip
_SHARES = {"tensors": 3.0, "modules": 3.0, "fields": 3.0, "named": 4.0}


@dataclass(frozen=True)
class Shipped:
    """One architecture that a draft may extend."""

    name: str
    data: Mapping[str, Any]  # its conf with all that it inherits
    weight_map: str
    reads: frozenset[str]  # fields of config.json
    sources: Mapping[str, tuple[str, ...]]  # by target of its map
    types: tuple[str, ...]  # model types and classes that it is for
    ancestors: tuple[str, ...] = ()
    heirs: int = 0  # architectures that build on it: what many share is the usual


def read_library(
    roots: Sequence[Path], without: Collection[str] = (), only: str | None = None
) -> list[Shipped]:
    """Every architecture of `roots`, or `only` the one of that name.

    Those `without` are left out with all that builds on them, in their conf or in their map.
    """
    found = []
    for name in conf_names(roots) if only is None else [only]:
        conf = find_conf(name, roots)
        if "matches" not in conf.marked.data:
            continue  # a checkpoint of another architecture
        files = ancestry(conf, roots)
        data: dict[str, Any] = {}
        for file in reversed(files):
            own = {k: v for k, v in file.marked.data.items() if k not in ("defaults", "matches")}
            data = overlay(data, own)
        blocks = (data.get("layers") or {}).get("blocks") or {}
        if not isinstance(data.get("weight_map"), str) or not isinstance(blocks.get("attn"), dict):
            continue  # drafts are written in the names that shipped confs give to blocks
        weight_map = load_weight_map(data["weight_map"], roots)
        built_on = {file.name for file in files} | {path.stem for path in weight_map.files}
        if built_on & set(without):
            continue
        sources = {
            rule.target.text: tuple(s.pattern.text for way in rule.ways for s in way.sources)
            for rule in weight_map.rules
        }
        matches = conf.marked.data["matches"]
        types = tuple(str(name) for value in matches.values() for name in _listed(value))
        ancestors = tuple(file.name for file in files[1:])
        found.append(
            Shipped(name, data, data["weight_map"], fields_read(data), sources, types, ancestors)
        )
    if not found:
        raise AssemblerError("there is no architecture to draft from")
    heirs = Counter(name for shipped in found for name in shipped.ancestors)
    return [replace(shipped, heirs=heirs[shipped.name]) for shipped in found]


def fields_read(data: Mapping[str, Any]) -> frozenset[str]:
    """The fields of config.json that a conf asks for."""
    reads: set[str] = set(data.get("assumes") or {})
    reads.add("max_position_embeddings")
    for _, text in leaves({k: v for k, v in data.items() if k != "assumes"}, ()):
        if not isinstance(text, str) or "${" not in text:
            continue
        reads |= {name.strip() for names in _FIELD.findall(text) for name in names.split("|")}
        for expression in _CALC.findall(text):
            reads |= set(_WORD.findall(_FIELD.sub("", expression)))
        if "${hf_rope:" in text:
            reads |= set(_ROPE_FIELDS)
    return frozenset(reads | {name.partition(".")[0] for name in reads})


def nearness(
    shipped: Shipped, anatomy: Anatomy, config: Mapping[str, Any], library: Sequence[Shipped]
) -> float:
    """From 0 to 1: how much a checkpoint looks like one of this architecture."""
    shares = {
        "tensors": _same_tensors(shipped, anatomy),
        "modules": _same_modules(shipped, anatomy),
        "fields": _same_fields(shipped, config, library),
        "named": name_likeness(shipped, config),
    }
    return max(0.0, sum(_SHARES[k] * v for k, v in shares.items()) / sum(_SHARES.values()))


def name_likeness(shipped: Shipped, config: Mapping[str, Any]) -> float:
    """From 0 to 1: how alike the names of the model types and classes are."""
    own = [config.get("model_type"), *_listed(config.get("architectures"))]
    pairs = [(_bare(a), _bare(b)) for a in own if isinstance(a, str) for b in shipped.types]
    return max((difflib.SequenceMatcher(None, a, b).ratio() for a, b in pairs), default=0.0)


def meaningful(config: Mapping[str, Any]) -> list[str]:
    """The fields of a config that say something about what the model computes."""
    return [key for key, value in config.items() if not SILENT.search(key) and value is not None]


def _same_tensors(shipped: Shipped, anatomy: Anatomy) -> float:
    """The share of parts whose names on disk the map already has."""
    same = 0
    for target, piece in anatomy.parts.items():
        target = target.replace("layers.", "layers.{i}.", 1) if piece.layers else target
        theirs = shipped.sources.get(target, ())
        rule = piece.rule["from"] if isinstance(piece.rule, dict) else piece.rule
        names = [r["from"] if isinstance(r, dict) else r for r in _listed(rule)]
        same += all(any(t.endswith(f".{name}") or t == name for t in theirs) for name in names)
    return same / max(1, len(anatomy.parts))


def _same_modules(shipped: Shipped, anatomy: Anatomy) -> float:
    """Modules that both have, of those that either has."""
    theirs = {target.replace(".{i}", "") for target in shipped.sources}
    ours = set(anatomy.parts)
    fused = {t.removesuffix(".weight").removesuffix(".bias") for t in ours | theirs}
    both = {t for t in fused if _in(t, ours) and _in(t, theirs)}
    return len(both) / max(1, len(fused))


def _in(target: str, targets: Collection[str]) -> bool:
    return any(target + ending in targets for ending in ("", ".weight", ".bias"))


def _same_fields(shipped: Shipped, config: Mapping[str, Any], library: Sequence[Shipped]) -> float:
    """Fields that the config has and the conf reads, less those it reads and the config lacks.

    A field that few architectures read says more about which one it is.
    """
    ours = set(meaningful(config))
    known = {name for key in config for name in synonyms_of(key)}
    readers = Counter(name for other in library for name in other.reads)

    def weight(name: str) -> float:
        return 1.0 - readers[name] / (len(library) + 1)

    all_ours = sum(weight(name) for name in sorted(ours) if readers[name])
    read = sum(weight(name) for name in sorted(ours & shipped.reads))
    needless = sum(weight(n) for n in sorted(shipped.reads) if "." not in n and n not in known)
    return (read - 0.3 * needless) / max(1.0, all_ours)


def _bare(name: str) -> str:
    """A type or a class without the words that all have."""
    return re.sub(r"for(causallm|conditionalgeneration)|lmheadmodel|[_\-]|text", "", name.lower())


def _listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [] if value is None else [value]
