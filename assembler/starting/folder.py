"""Writes the folder of a new architecture: two YAML files, config.json, parity test, README."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from assembler.errors import OptionError, SpecError
from assembler.model.compose import inherited_conf, open_conf
from assembler.model.conf_files import conf_names, search_roots
from assembler.output_folder import output_folder
from assembler.starting import templates

_NAME = re.compile(r"[a-z][a-z0-9_]*")


def write_start(
    name: str,
    parent: str,
    out: Path,
    *,
    config: Path | None = None,
    search_path: Sequence[str | Path] = (),
) -> tuple[Path, ...]:
    """Write the folder `out` of an architecture `name` that begins as `parent`; its files.

    Args:
        parent: the name of a conf.
        config: the config.json to begin with; None: transformers' default for the parent's type.
        search_path: more folders that hold conf/ and weight_maps/.

    Raises:
        OptionError: the name cannot be used, or the folder is taken or cannot be written.
        AssemblerError: there is no such parent, or no config for it.
    """
    roots = search_roots(search_path)
    _check_name(name, conf_names(roots))
    if "/" in parent or parent.endswith((".yaml", ".yml")):
        raise OptionError(f"from={parent}: is a file; a name is inherited: {Path(parent).stem}")
    _, data = inherited_conf(parent, search_path)
    fields = _given_config(config) if config else default_config(_model_type(parent, roots))
    files = {
        "config.json": json.dumps(fields, indent=2) + "\n",
        f"conf/{name}.yaml": templates.conf_yaml(name, parent, data),
        f"weight_maps/{name}.yaml": templates.map_yaml(name, parent, str(data.get("weight_map"))),
        f"tests/test_{name}.py": templates.test_file(name),
        "README.md": templates.readme(name, parent),
    }
    with output_folder(out) as work:
        for path, text in files.items():
            (work / path).parent.mkdir(exist_ok=True)
            (work / path).write_text(text, "utf-8")
    return tuple(out / path for path in files)


def _check_name(name: str, taken: Sequence[str]) -> None:
    if not _NAME.fullmatch(name):
        raise OptionError(f"name={name}: small letters, digits and _ are wanted, a letter first")
    if name in taken:
        raise OptionError(f"name={name}: there is a conf of that name already; choose another")


def _model_type(parent: str, roots: Sequence[Path]) -> str:
    """The type that config.json files of the parent name; of several the first."""
    file, _ = open_conf(parent, roots)
    matches = file.marked.data.get("matches")
    types = matches.get("model_type") if isinstance(matches, Mapping) else None
    first = types[0] if isinstance(types, list) and types else types
    if not isinstance(first, str):
        raise SpecError(
            f"{file.where(())}: from={parent} names no model_type under matches, so no config.json "
            "can be made for it: pass config=path/to/config.json"
        )
    return first


def default_config(model_type: str) -> dict[str, Any]:
    """transformers' default config.json of a type, with the class that its model has.

    Raises:
        OptionError: transformers is not installed, or has no such type.
    """
    from assembler.verifying.reference import require_transformers

    transformers = require_transformers()
    if model_type not in transformers.models.auto.configuration_auto.CONFIG_MAPPING:
        raise OptionError(
            f"transformers has no type '{model_type}' to take a config.json from: pass "
            "config=path/to/config.json"
        )
    config = transformers.AutoConfig.for_model(model_type).get_text_config()
    every = json.loads(config.to_json_string(use_diff=False))
    # Of what any config has, that which says nothing about this model: labels, output options.
    common = transformers.PreTrainedConfig().to_dict()
    fields = {
        name: value
        for name, value in every.items()
        if value is not None and (name == "tie_word_embeddings" or value != common.get(name))
    }
    for name in ("transformers_version", "id2label", "label2id"):
        fields.pop(name, None)
    models = transformers.models.auto.modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING
    return {**fields, "architectures": [models[type(config)].__name__]}


def _given_config(path: Path) -> dict[str, Any]:
    file = path / "config.json" if path.is_dir() else path
    try:
        fields = json.loads(file.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise OptionError(f"config={path}: cannot be read: {error}") from None
    if not isinstance(fields, dict) or not fields.get("model_type"):
        raise OptionError(f"config={path}: names no model_type, so nothing can be compared with it")
    return fields
