"""Which conf a checkpoint belongs to, from its config.json and what each conf `matches`."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from assembler.errors import SpecError, did_you_mean
from assembler.model.conf_files import ConfFile, ancestry, matches_of

_KEYS = ("architectures", "model_type", "config_class")


def detect_conf(config: Mapping[str, Any], roots: Sequence[Path]) -> ConfFile:
    """The conf whose `matches` fit `config`, a parsed config.json.

    `config["architectures"]` decides; if no conf names one of them, `model_type`; then the name of
    the config's class (`auto_map.AutoConfig` of checkpoints that bring their own code). Each entry
    of `matches` is one name or a list of names, the aliases among them.

    A class can stand for several types: transformers saves InternLM3 as a LlamaForCausalLM, and the
    text model in a Mistral3ForConditionalGeneration is a Mistral or a Ministral 3. So a conf that
    builds on the one so found, and is for the `model_type` (first that of `text_config`), wins.

    Raises:
        SpecError: nothing matches (lists what is available, and the nearest names), or two confs
            of equal standing do.
    """
    named = {name for read in _READERS.values() for name in read(config)}
    named |= _names(_text_config(config).get("model_type"))
    confs = list(matches_of(roots, mentioning=named))
    for conf, matches in confs:
        _check_keys(conf, matches)
    for key, read in _READERS.items():
        wanted = read(config)
        fitting = [conf for conf, matches in confs if wanted & _names(matches.get(key))]
        if fitting:
            found = _the_one(fitting, roots, key, wanted)
            return _of_its_type(found, config, confs, roots) or found
    everything = list(matches_of(roots))
    for conf, matches in everything:
        _check_keys(conf, matches)
    raise SpecError(_nothing_fits(config, everything))


def _text_config(config: Mapping[str, Any]) -> Mapping[str, Any]:
    text = config.get("text_config")
    return text if isinstance(text, Mapping) else {}


def _the_one(
    fitting: list[ConfFile], roots: Sequence[Path], key: str, wanted: set[str]
) -> ConfFile:
    """The conf of the best root; two in the same root would make the choice arbitrary."""
    for root in roots:
        here = [conf for conf in fitting if conf.path.parent.parent == root]
        if len(here) == 1:
            return here[0]
        if here:
            names = " and ".join(conf.where(("matches",)) for conf in here)
            raise SpecError(
                f"{key} {', '.join(sorted(wanted))} is matched by {names}: "
                f"pass conf={here[0].name} or conf={here[1].name}"
            )
    raise AssertionError("every conf was found below a root")


def _of_its_type(
    found: ConfFile,
    config: Mapping[str, Any],
    confs: list[tuple[ConfFile, Any]],
    roots: Sequence[Path],
) -> ConfFile | None:
    """The conf for the config's model type that builds on `found`, if there is one."""
    for fields in (_text_config(config), config):
        wanted = _names(fields.get("model_type"))
        fitting = [
            conf
            for conf, matches in confs
            if wanted & _names(matches.get("model_type")) and _builds_on(conf, found, roots)
        ]
        if fitting:
            return _the_one(fitting, roots, "model_type", wanted)
    return None


def _builds_on(conf: ConfFile, other: ConfFile, roots: Sequence[Path]) -> bool:
    return conf.path != other.path and other.path in {f.path for f in ancestry(conf, roots)}


def _nothing_fits(config: Mapping[str, Any], confs: list[tuple[ConfFile, Any]]) -> str:
    names = {name for _, m in confs for key in _KEYS for name in _names(m.get(key))}
    wanted = [name for read in _READERS.values() for name in sorted(read(config))]
    if not wanted:
        return (
            "the checkpoint's config.json names no architecture (neither 'architectures' nor "
            "'model_type'): say which with conf=NAME"
        )
    hints = dict.fromkeys(hint for name in wanted if (hint := did_you_mean(name, names)))
    available = ", ".join(sorted({conf.name for conf, _ in confs}))
    return (
        f"no conf matches this checkpoint ({', '.join(wanted)}).{''.join(hints)} Available: "
        f"{available}. Pass conf=NAME, or write a conf for it (conf=./my.yaml)"
    )


def _check_keys(conf: ConfFile, matches: Mapping[str, Any]) -> None:
    for key, value in matches.items():
        if key not in _KEYS:
            raise SpecError(
                f"{conf.where(('matches', key))}: matches has no '{key}'."
                f"{did_you_mean(key, _KEYS)} Known: {', '.join(_KEYS)}"
            )
        listed = value if isinstance(value, list) else [value]
        if value is not None and not all(isinstance(name, str) for name in listed):
            raise SpecError(
                f"{conf.where(('matches', key))}: matches.{key} takes a name or a list of names"
            )
        if any("${" in name for name in _names(value)):
            raise SpecError(
                f"{conf.where(('matches', key))}: matches.{key} takes no interpolation: it is read "
                "before there is a config.json"
            )


def _names(value: Any) -> set[str]:
    """One name or a list of names as a set; a config.json may hold anything else as well."""
    return {n for n in (value if isinstance(value, list) else [value]) if isinstance(n, str)}


def _config_class(config: Mapping[str, Any]) -> set[str]:
    auto = config.get("auto_map")
    name = auto.get("AutoConfig") if isinstance(auto, Mapping) else None
    return {str(name).rpartition(".")[2]} if name else set()


_READERS: Mapping[str, Callable[[Mapping[str, Any]], set[str]]] = {
    "architectures": lambda config: _names(config.get("architectures")),
    "model_type": lambda config: _names(config.get("model_type")),
    "config_class": _config_class,
}
