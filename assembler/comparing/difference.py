"""The difference of two architectures as data."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from assembler.comparing.conf_changes import Change, Wiring, conf_changes, wiring_changes
from assembler.comparing.map_changes import map_changes
from assembler.errors import SpecError
from assembler.model.compose import inherited_conf
from assembler.model.conf_files import search_roots
from assembler.model.registry import default_registry
from assembler.weights.weight_map import WeightMap, load_weight_map


@dataclass(frozen=True)
class Difference:
    """What `new` has that `old` has not, and the other way round."""

    new: str  # names of the confs
    old: str
    blocks: tuple[Change, ...]
    wiring: tuple[Wiring, ...]
    weights: tuple[Change, ...]

    @property
    def is_empty(self) -> bool:
        return not (self.blocks or self.wiring or self.weights)

    def to_json(self) -> dict[str, Any]:
        """JSON-ready data."""
        return {**asdict(self), "same": self.is_empty}


def compare_architectures(
    conf: str | Path, other: str | Path, search_path: Sequence[str | Path] = ()
) -> Difference:
    """Compare two confs, with all they inherit, and their weight maps.

    Raises:
        AssemblerError: one of them (or what it names) is not there or cannot be read.
    """
    new, ours = _inherited("conf", conf, search_path)
    old, theirs = _inherited("other", other, search_path)
    return Difference(
        new=new,
        old=old,
        blocks=tuple(conf_changes(ours, theirs, default_registry())),
        wiring=tuple(wiring_changes(ours, theirs)),
        weights=tuple(
            map_changes(
                *(_weight_map(n, d, search_path) for n, d in ((conf, ours), (other, theirs)))
            )
        ),
    )


def _inherited(
    key: str, conf: str | Path, search_path: Sequence[str | Path]
) -> tuple[str, dict[str, Any]]:
    """What the option `key` names; a weight map is taken for no architecture."""
    name, data = inherited_conf(conf, search_path, key)
    if "layers" not in data and {"weights", "extends"} & set(data):
        raise SpecError(
            f"{key}={conf}: this is a weight map; name the model YAML that reads by it "
            "(maps are compared with their architectures)"
        )
    return name, data


def _weight_map(
    conf: str | Path, data: dict[str, Any], search_path: Sequence[str | Path]
) -> WeightMap:
    name = data.get("weight_map")
    if not isinstance(name, str) or not name:
        raise SpecError(f"conf={conf}: weight_map names no map")
    if name.startswith(("./", "../")):
        return load_weight_map(Path(conf).parent / name, search_roots(search_path))
    return load_weight_map(name, search_roots(search_path))
