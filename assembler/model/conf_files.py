"""Where conf YAML files are found, what they inherit, and which line says what.

A *root* is a folder that holds `conf/` and `weight_maps/`. The roots, first match wins: those named
by `hydra.searchpath`, the current folder, the folders of `$ASSEMBLER_PATH`, and this package.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from assembler.errors import SpecError, did_you_mean
from assembler.weights.yaml_marks import Marked, display_path, load_marked

PACKAGE_ROOT = Path(__file__).resolve().parent.parent
KeyPath = tuple[str | int, ...]


def search_roots(extra: Sequence[str | Path] = ()) -> tuple[Path, ...]:
    """The roots to look in, best first; `extra` are the entries of `hydra.searchpath`.

    Raises:
        SpecError: an entry of `extra` or of `$ASSEMBLER_PATH` is not a folder.
    """
    named = [(str(p).removeprefix("file://"), "hydra.searchpath") for p in extra]
    from_env = [p for p in os.environ.get("ASSEMBLER_PATH", "").split(os.pathsep) if p]
    wrong = [
        f"{where} names '{path}', which is not a folder"
        for path, where in [*named, *[(p, "$ASSEMBLER_PATH") for p in from_env]]
        if not Path(path).expanduser().is_dir()
    ]
    if wrong:
        raise SpecError("\n".join(wrong))
    roots = [*[p for p, _ in named], Path.cwd(), *from_env, PACKAGE_ROOT]
    return tuple(dict.fromkeys(Path(p).expanduser().resolve() for p in roots))


@dataclass(frozen=True)
class ConfFile:
    """One conf YAML: its name in the group, the file, and its contents with line marks."""

    name: str
    path: Path
    marked: Marked

    @property
    def parents(self) -> tuple[str, ...]:
        """The confs its `defaults` list names."""
        entries = self.marked.data.get("defaults") or []
        if not isinstance(entries, list) or not all(isinstance(e, str) for e in entries):
            raise SpecError(
                f"{self.where(('defaults',))}: defaults must be a list of conf names, "
                "e.g. [llama, _self_]"
            )
        return tuple(e for e in entries if e != "_self_")

    def where(self, key: KeyPath = ()) -> str:
        """ "file:line" of the entry that sets `key`, or of the deepest part of it that is there."""
        return self.marked.where(*key) if key else display_path(self.path)

    def sets(self, key: KeyPath) -> int:
        """How many leading parts of `key` this file spells out."""
        path = tuple(map(str, key))
        depth = 0
        while depth < len(path) and path[: depth + 1] in self.marked.lines:
            depth += 1
        return depth


def conf_names(roots: Sequence[Path]) -> list[str]:
    """The names that `conf=` takes, sorted."""
    return sorted({path.stem for path in _conf_paths(roots)})


def find_conf(name: str, roots: Sequence[Path], referrer: str = "") -> ConfFile:
    """The conf of that name in the first root that has it.

    Raises:
        SpecError: there is none (lists what there is, and the nearest name).
    """
    for root in roots:
        path = root / "conf" / f"{name}.yaml"
        if path.is_file():
            return read_conf(path, name)
    known = conf_names(roots)
    raise SpecError(
        f"{referrer}no conf named '{name}'.{did_you_mean(name, known)} "
        f"Available: {', '.join(known)}. Name a file of your own by its path: conf=./{name}.yaml"
    )


def read_conf(path: Path, name: str | None = None) -> ConfFile:
    """Read one conf YAML (syntax and duplicate keys are checked here)."""
    marked = load_marked(path, SpecError)
    if not isinstance(marked.data, dict):
        raise SpecError(f"{display_path(path)}: a conf is a mapping of fields")
    return ConfFile(name or path.stem, path, marked)


def ancestry(conf: ConfFile, roots: Sequence[Path]) -> tuple[ConfFile, ...]:
    """`conf` and all it inherits from, itself first, nearer ancestors before farther ones.

    Raises:
        SpecError: a `defaults` list names an unknown conf, or they form a cycle.
    """
    found: dict[Path, ConfFile] = {}

    def visit(file: ConfFile, trail: tuple[ConfFile, ...]) -> None:
        if any(file.path == seen.path for seen in trail):
            names = " -> ".join(f.name for f in (*trail, file))
            raise SpecError(
                f"{trail[-1].where(('defaults',))}: defaults go in a circle: {names}. "
                "A conf cannot inherit from itself; give yours another name"
            )
        found.setdefault(file.path, file)
        for parent in file.parents:
            visit(
                find_conf(parent, roots, f"{file.where(('defaults',))}: "),
                (*trail, file),
            )

    visit(conf, ())
    return tuple(found.values())


def where_set(files: Sequence[ConfFile], key: KeyPath) -> str:
    """ "file:line" of what sets `key` among `files` (nearest first): the deepest match wins."""
    best = max(files, key=lambda f: f.sets(key))
    return best.where(key)


def matches_of(roots: Sequence[Path]) -> Iterator[tuple[ConfFile, dict[str, Any]]]:
    """Every conf that says which checkpoints it is for, with its own `matches`, best root first.

    `matches` is not inherited: a conf that extends another is chosen by name unless it says so.
    """
    seen: set[str] = set()
    for path in _conf_paths(roots):
        if path.stem in seen:
            continue
        seen.add(path.stem)
        conf = read_conf(path)
        matches = conf.marked.data.get("matches")
        if isinstance(matches, dict):
            yield conf, matches
        elif matches is not None:
            raise SpecError(f"{conf.where(('matches',))}: matches must be a mapping")


def _conf_paths(roots: Sequence[Path]) -> Iterator[Path]:
    for root in roots:
        yield from sorted((root / "conf").glob("*.yaml"))
