"""Weight maps: `weight_maps/<name>.yaml`, the language that says how a checkpoint fills a model.

A map is target-driven: each internal module has exactly one rule, which names its sources on disk.
Reading a map checks all that can be checked without a model or a checkpoint, and reports every
problem at once, each with file and line.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, get_args

from assembler.blocks.parallel import ShardKind
from assembler.errors import WeightMapError, did_you_mean
from assembler.weights.cache_scales import NAMES, parse_cache_scales
from assembler.weights.gguf_config import Field, Header, parse_config, translate_config
from assembler.weights.ignores import Ignore, parse_ignores
from assembler.weights.map_checks import rule_conflicts
from assembler.weights.map_rules import Rule, parse_rule
from assembler.weights.map_scopes import Scope, flatten_scope, merge_scopes, read_scope
from assembler.weights.naming import Naming, parse_prefixes
from assembler.weights.pattern import parse_target
from assembler.weights.quantization import Scheme, parse_quantization
from assembler.weights.tp_entries import names_target, tp_hint
from assembler.weights.yaml_marks import Marked, display_path, load_marked

MAP_KEYS = (
    *("extends", "prefixes", "quantization", "cache_scales"),
    *("config", "weights", "tp", "ignore"),
)
SPLIT_KINDS = tuple(kind for kind in get_args(ShardKind) if kind != "replicated")

# The folder of the shipped `weight_maps`, searched last.
PACKAGE_ROOT = Path(__file__).resolve().parents[1]


@dataclass(frozen=True)
class WeightMap:
    """A map as read: rules with whole targets and sources, and what surrounds them."""

    name: str
    files: tuple[Path, ...]  # this map, then those it extends
    rules: tuple[Rule, ...]
    prefixes: tuple[Naming, ...]  # one that fits is chosen for each checkpoint
    ignore: tuple[Ignore, ...]
    config: Mapping[str, Field] | None  # GGUF maps only
    quantization: Mapping[str, Scheme] = field(default_factory=dict)  # by quant_method
    cache_scales: Mapping[str, tuple[str, ...]] = field(default_factory=lambda: NAMES)  # by kind

    def translate_config(self, metadata: Mapping[str, Any], tensors: Mapping) -> dict[str, Any]:
        """The config.json-like fields of a GGUF file with this metadata and these tensors."""
        return translate_config(self.config or {}, Header(metadata, tensors))


def load_weight_map(
    name_or_path: str | Path,
    search_dirs: Sequence[str | Path] = (),
    modules: Collection[str] = (),
) -> WeightMap:
    """Read a map by name (`llama`, `gguf/llama`) or by path (`./mine.yaml`).

    Args:
        search_dirs: folders that hold a `weight_maps` folder; the shipped maps come last.
        modules: the paths of the model's modules, where there is a model: hints name those.

    Raises:
        WeightMapError: no such map, or everything that is wrong with it, one problem a line.
    """
    roots = [Path(root) / "weight_maps" for root in (*search_dirs, PACKAGE_ROOT)]
    chain = _read_chain(str(name_or_path), roots)
    for marked in chain:
        _check_top_level(marked)
    problems: list[str] = []
    rules = _rules(chain, problems)
    problems += [] if problems else rule_conflicts(rules)
    rules = _with_tp(rules, chain, problems, modules)
    ignore = _attempt(problems, parse_ignores, chain) or ()
    config = _attempt(problems, _config, chain)
    quantization = _attempt(problems, parse_quantization, chain) or {}
    scales = _attempt(problems, parse_cache_scales, chain) or {}
    whole = [] if problems else rules  # roots cannot be told from those of refused rules
    prefixes = _attempt(problems, parse_prefixes, chain, whole) or (Naming(),)
    if problems:
        raise WeightMapError("\n".join(problems))
    files = tuple(marked.path for marked in chain)
    name = str(name_or_path).removesuffix(".yaml")
    return WeightMap(name, files, tuple(rules), prefixes, ignore, config, quantization, scales)


def _read_chain(name: str, roots: Sequence[Path]) -> list[Marked]:
    """The map and all it extends, most derived first."""
    chain: list[Marked] = []
    asked_at = None
    while name is not None:
        path = _find(name, roots, [marked.path for marked in chain], asked_at)
        marked = load_marked(path, WeightMapError)
        if not isinstance(marked.data, dict):
            raise WeightMapError(f"{marked.where()}: a weight map is a mapping with 'weights'")
        chain.append(marked)
        name = marked.data.get("extends")
        asked_at = marked.where("extends")
        if name is not None and (not isinstance(name, str) or not name):
            raise WeightMapError(f"{asked_at}: 'extends' takes the name of one map, not {name!r}")
    return chain


def _find(name: str, roots: Sequence[Path], taken: Sequence[Path], asked_at: str | None) -> Path:
    """The first file of that name; one already in the chain may extend its namesake further on."""
    start = f"{asked_at}: " if asked_at else ""
    if name.endswith((".yaml", ".yml")):
        beside = taken[-1].parent if taken else Path()
        candidates = [beside / name]
    else:
        candidates = [root / f"{name}.yaml" for root in roots]
    found = [path for path in candidates if path.is_file()]
    fresh = [path for path in found if path.resolve() not in {t.resolve() for t in taken}]
    if fresh:
        return fresh[0]
    if found:
        trail = " -> ".join(display_path(path) for path in [*taken, found[0]])
        raise WeightMapError(f"{start}weight maps extend each other in a circle: {trail}")
    known = {
        path.relative_to(root).with_suffix("").as_posix()
        for root in roots
        for path in root.rglob("*.yaml")
    }
    looked = ", ".join(dict.fromkeys(display_path(path) for path in candidates))
    hint = did_you_mean(name, known) or f" There are: {', '.join(sorted(known))}."
    raise WeightMapError(f"{start}no weight map '{name}' (looked for {looked}).{hint}")


def _check_top_level(marked: Marked) -> None:
    problems = []
    for key in marked.data:
        if key not in MAP_KEYS:
            hint = did_you_mean(key, MAP_KEYS)
            problems.append(
                f"{marked.where(key)}: unknown key '{key}'; a weight map has "
                f"{', '.join(MAP_KEYS)}.{hint}"
            )
    mappings = ("weights", "tp", "ignore", "quantization", "cache_scales")
    kinds = dict.fromkeys(mappings, dict) | {"prefixes": list}
    for key, kind in kinds.items():
        value = marked.data.get(key)
        if value is not None and not isinstance(value, kind):
            word = "mapping" if kind is dict else "list"
            problems.append(f"{marked.where(key)}: '{key}' is a {word}, not {value!r}")
    if problems:
        raise WeightMapError("\n".join(problems))


def _attempt(problems: list[str], read: Any, *arguments: Any) -> Any:
    """`read(*arguments)`, its error added to `problems` instead of raised."""
    try:
        return read(*arguments)
    except WeightMapError as problem:
        problems.append(str(problem))
        return None


def _rules(chain: Sequence[Marked], problems: list[str]) -> list[Rule]:
    tree = Scope()
    for depth, marked in enumerate(reversed(chain)):
        weights = marked.data.get("weights") or {}
        own = read_scope(marked, ("weights",), weights, depth, problems)
        tree = _attempt(problems, merge_scopes, tree, own) or tree
    texts = _attempt(problems, flatten_scope, tree) or []
    if not texts and not problems:
        problems.append(f"{chain[0].where('weights')}: the map has no rule under 'weights'")
    rules = (_attempt(problems, parse_rule, text) for text in texts)
    return [rule for rule in rules if rule is not None]


def _with_tp(
    rules: list[Rule], chain: Sequence[Marked], problems: list[str], modules: Collection[str]
) -> list[Rule]:
    """The rules with the split that the `tp` sections state for their targets."""
    entries = _attempt(problems, _tp_entries, chain)
    if not entries or problems:
        return rules
    split: dict[int, Rule] = {}
    for target, (kind, where, inherited) in entries.items():
        matched = [n for n, rule in enumerate(rules) if names_target(target, rule.target.form)]
        if not matched and not inherited:
            hint = tp_hint(target, rules, modules)
            problems.append(f"{where}: tp names '{target}', which no rule fills.{hint}")
        for n in matched:
            other = split.get(n)
            if other is not None and other.tp != kind:
                problems.append(
                    f"{where}: '{target}' is {kind} here, and {other.tp} at {other.tp_where}"
                )
            split[n] = replace(rules[n], tp=kind, tp_where=where)
    return [split.get(n, rule) for n, rule in enumerate(rules)]


def _tp_entries(chain: Sequence[Marked]) -> dict[str, tuple[ShardKind, str, bool]]:
    """Target form -> (kind, file:line, whether an extended map says it); derived maps win."""
    entries: dict[str, tuple[ShardKind, str, bool]] = {}
    for marked in chain:
        own: dict[str, tuple[ShardKind, str, bool]] = {}
        for kind, targets in (marked.data.get("tp") or {}).items():
            where = marked.where("tp", kind)
            if kind not in SPLIT_KINDS:
                hint = did_you_mean(kind, SPLIT_KINDS)
                raise WeightMapError(
                    f"{where}: unknown split '{kind}'; tp has {', '.join(SPLIT_KINDS)}.{hint}"
                )
            names = [targets] if isinstance(targets, str) else targets
            if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
                raise WeightMapError(f"{where}: '{kind}' is a list of targets, not {targets!r}")
            for n, name in enumerate(names):
                where = marked.where("tp", kind, n)
                form = parse_target(name, where).form
                if form in own:
                    raise WeightMapError(f"{where}: '{name}' is listed twice, see {own[form][1]}")
                own[form] = (kind, where, marked is not chain[0])
        entries = {**own, **entries}
    return entries


def _config(chain: Sequence[Marked]) -> dict[str, Field] | None:
    fields: dict[str, Field] = {}
    for marked in reversed(chain):
        section = marked.data.get("config")
        if section is not None:
            fields |= parse_config(section, marked.where, "config")
    return fields or None
