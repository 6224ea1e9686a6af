"""Fields of config.json: those the parent calls otherwise, those it needs and does not get."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from assembler.drafting.anatomy import Anatomy
from assembler.drafting.sheet import Sheet
from assembler.drafting.templates import width_ref
from assembler.drafting.vocabulary import synonyms_of
from assembler.errors import SpecError
from assembler.model.assumptions import broken_assumptions
from assembler.model.config_fields import Missing, missing_fields
from assembler.model.parse import leaves
from assembler.model.resolvers import bind_config, register_resolvers

_FIELD = re.compile(r"\$\{hf:([^,{}$]+)")
_CALC = re.compile(r"(?<=\$\{calc:')(.*?)(?='\})")
_WORD = re.compile(r"(?<![\w.:|\"'])[A-Za-z_]\w*(?![\w:(])")
_KEPT_WORDS = frozenset(["if", "else", "and", "or", "not", "is", "in", "None", "True", "False"])
_OUTSIDE = ("hidden_size", "vocab_size", "max_length", "embed", "positions", "norm", "lm_head")
_OPTIONAL = ("mlp", "moe", "shared")
_NEEDED = ("router", "experts", "norm", "qk_norm", "rope")
_FROM_SHAPES = {
    "vocab_size": lambda a: a.parts["embed"].shape[0],
    "hidden_size": lambda a: a.parts["embed"].shape[1],
    "num_hidden_layers": lambda a: a.inventory.count,
    "intermediate_size": lambda a: _inner(a, "mlp"),
}
_SIZES = {
    ("hidden_size",): "hidden_size",
    ("vocab_size",): "vocab_size",
    ("layers", "count"): "num_hidden_layers",
}


def rename_fields(sheet: Sheet) -> None:
    """Let the draft read the names that this config.json has for what the parent reads."""
    for path, text in list(_texts(sheet.data)):
        renamed = _CALC.sub(
            lambda m: _words(m[1], sheet), _FIELD.sub(lambda m: _names(m, sheet), text)
        )
        if renamed != text:
            _set_leaf(sheet, path, renamed, "the field's name in this config.json")


def _texts(data: Mapping[str, Any]) -> Iterator[tuple[tuple, str]]:
    for path, value in leaves({k: v for k, v in data.items() if k != "assumes"}, ()):
        if isinstance(value, str) and "${" in value:
            yield path, value


def _set_leaf(sheet: Sheet, path: tuple, value: Any, why: str) -> None:
    """Set a leaf; of a list (wiring) the whole list is written."""
    for place, key in enumerate(path):
        if isinstance(key, int):
            items = list(sheet.get(path[:place]))
            items[key] = value
            sheet.set(path[:place], items, why)
            return
    sheet.set(path, value, why)


def _names(match: re.Match[str], sheet: Sheet) -> str:
    names = match[1].split("|")
    if any(_is_there(sheet, name.strip()) for name in names):
        return match[0]
    for name in names:
        for other in synonyms_of(name.strip()):
            if _is_there(sheet, other):
                return f"${{hf:{other}"
    return match[0]


def _words(expression: str, sheet: Sheet) -> str:
    def word(match: re.Match[str]) -> str:
        name = match[0]
        if name in _KEPT_WORDS or _is_there(sheet, name):
            return name
        for other in synonyms_of(name):
            if _is_there(sheet, other):
                return other if "." not in other else f"${{hf:{other}}}"
        return name

    return _WORD.sub(word, expression)


def _is_there(sheet: Sheet, name: str) -> bool:
    """Whether config.json itself has a value there, defaults aside."""
    value = sheet.fields.with_defaults({}).get(name)
    return value is not None and not isinstance(value, Missing)


def resolved(sheet: Sheet, part: tuple[str, ...] = ()) -> Any:
    """What stands at `part` with interpolations replaced; absent fields stay `Missing`.

    Raises SpecError where an interpolation cannot be computed at all.
    """
    return _value_in(_bound(sheet), part)


def _bound(sheet: Sheet) -> DictConfig:
    """The draft as a tree whose interpolations read its config.json."""
    register_resolvers()
    data = sheet.data
    fields = sheet.fields.with_defaults(data.get("config_defaults") or {})
    tree = OmegaConf.create({"conf": data})
    bind_config(tree, fields)
    return tree


def _value_in(tree: DictConfig, part: tuple[str, ...]) -> Any:
    try:
        node = tree["conf"]
        for key in part:
            node = node[key]
            if node is None or not OmegaConf.is_config(node):
                return node
        return OmegaConf.to_container(node, resolve=True)
    except OmegaConfBaseException as error:
        raise SpecError(str(error)) from None


def supply_missing(sheet: Sheet, anatomy: Anatomy) -> None:
    """Give a value to what the parent needs and config.json lacks: from shapes, or none."""
    tree = _bound(sheet)
    places = [(key,) for key in _OUTSIDE] + [("layers", "count")]
    wanted = [b for b in sheet.get(("layers", "blocks")) or {} if _is_wanted(b, anatomy)]
    places += [("layers", "blocks", block) for block in wanted]
    for variant, contents in (sheet.get(("layers", "variants")) or {}).items():
        own = [b for b in (contents or {}).get("blocks") or {} if _is_wanted(b, anatomy)]
        places += [("layers", "variants", variant, "blocks", block) for block in own]
    for place in places:
        if sheet.get(place) is not None:
            _supply(sheet, _value_in(tree, place), place, anatomy)


def _is_wanted(block: str, anatomy: Anatomy) -> bool:
    """What is not there needs nothing."""
    return block not in _OPTIONAL or anatomy.has(block)


def _supply(sheet: Sheet, value: Any, place: tuple[str, ...], anatomy: Anatomy) -> None:
    for path, leaf in list(leaves(value, place)):
        for name in missing_fields(leaf):
            _supply_field(sheet, path, name, place, anatomy)


def _supply_field(
    sheet: Sheet, path: tuple, name: str, place: tuple[str, ...], anatomy: Anatomy
) -> None:
    """One field that config.json lacks, which the leaf at `path` needs."""
    setting = path[: len(place) + 1]
    if path[-1] == "intermediate_size" and not isinstance(sheet.get(path), int):
        block = "moe.experts" if "experts" in path else str(place[-1])
        _set_leaf(sheet, path, width_ref(sheet, anatomy, block), "from the shapes")
    elif len(path) > len(setting) and setting[-1] not in _NEEDED:
        _set_leaf(sheet, setting, None, f"config.json has no {name}")
    elif path[-1] == "eps":
        _set_leaf(sheet, path, 1e-5, "config.json gives no eps")
    else:
        known = next((n for n in synonyms_of(name.split("|")[0]) if n in _FROM_SHAPES), None)
        size = _from_shapes(known, anatomy)
        if size is not None and "." not in name and "|" not in name:
            sheet.set(("config_defaults", name), size, "from the shapes of the tensors")
        else:
            _set_leaf(sheet, path, size, f"config.json has no {name}")


def name_by_value(sheet: Sheet, anatomy: Anatomy) -> None:
    """Where no field has a known name for a size of the model, take the one that has its value."""
    for place, known in _SIZES.items():
        size = _from_shapes(known, anatomy)
        if size is None or any(_is_there(sheet, name) for name in synonyms_of(known)):
            continue
        if (field := sheet.field_of_value(size)) is not None:
            sheet.set(place, f"${{hf:{field}}}", "the only field of config.json with this value")


def _from_shapes(name: str | None, anatomy: Anatomy) -> int | None:
    try:
        return None if name is None else _FROM_SHAPES[name](anatomy)
    except (KeyError, IndexError):
        return None


def _inner(anatomy: Anatomy, place: str) -> int:
    """The width inside of an MLP: the side of its last matrix that is not the stream's."""
    hidden = anatomy.hidden
    shape = anatomy.parts[f"layers.{place}.down"].shape[-2:]
    return shape[0] if shape[1] == hidden else shape[1]


def widen_assumptions(sheet: Sheet) -> None:
    """Take over what this config says where the parent assumes something else."""
    assumes = sheet.get(("assumes",)) or {}
    for name, _ in list(broken_assumptions(assumes, sheet.fields)):
        why = f"the parent covers only {assumes[name]!r}: see what it changes"
        sheet.set(("assumes", name), sheet.fields.get(name), why)
