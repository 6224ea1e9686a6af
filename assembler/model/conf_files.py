"""Where conf YAML files are found, what they inherit, and which line says what.

A *root* is a folder that holds `conf/` and `weight_maps/`. The roots, first match wins: those named
by `hydra.searchpath`, the current folder, the folders of `$ASSEMBLER_PATH`, and this package.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from assembler.errors import SpecError, did_you_mean
from assembler.weights.yaml_marks import Marked, display_path, load_marked

PACKAGE_ROOT = Path(__file__).resolve().parent.parent
KeyPath = tuple[str | int, ...]
_SELF = "_self_"  # stands for the file itself in its `defaults` list
# Files of `conf/`: all of them, and those that are whole models, not parts for others to build on.
_YAMLS, _MODELS = "*.yaml", "[!_]*.yaml"


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
    def defaults(self) -> tuple[str, ...]:
        """The confs it inherits from and `_self_`, each winning over those before it."""
        entries = self.marked.data.get("defaults") or []
        if not isinstance(entries, list) or not all(isinstance(e, str) for e in entries):
            raise SpecError(
                f"{self.where(('defaults',))}: defaults must be a list of conf names, "
                "e.g. [llama, _self_]"
            )
        return tuple(entries) if _SELF in entries else (*entries, _SELF)

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

    def settles(self, key: KeyPath) -> bool:
        """True if it gives `key` a value or puts something without such a key in its place."""
        value: Any = self.marked.data
        for name in key[: self.sets(key)]:
            value = value[name] if isinstance(value, list) else value[str(name)]
        return value is not self.marked.data and (
            self.sets(key) == len(key) or not isinstance(value, dict | list)
        )


def conf_names(roots: Sequence[Path]) -> list[str]:
    """The names that `conf=` takes, sorted; parts of models (`_name.yaml`) are not among them."""
    return sorted({path.stem for path in _conf_paths(roots)})


def find_conf(name: str, roots: Sequence[Path]) -> ConfFile:
    """The conf of that name in the first root that has it.

    Raises:
        SpecError: there is none (lists what there is, and the nearest name).
    """
    return _find(name, [root / "conf" for root in roots])


def _find(name: str, folders: Sequence[Path], referrer: str = "") -> ConfFile:
    for folder in folders:
        path = folder / f"{name}.yaml"
        if path.is_file():
            return read_conf(path, name)
    files = _YAMLS if referrer else _MODELS
    known = sorted({path.stem for folder in folders for path in folder.glob(files)})
    raise SpecError(
        f"{referrer}no conf named '{name}'.{did_you_mean(name, known)} "
        f"Available: {', '.join(known)}. Name a file of your own by its path: conf=./my.yaml"
    )


def read_conf(path: Path, name: str | None = None) -> ConfFile:
    """Read one conf YAML (syntax and duplicate keys are checked here)."""
    marked = load_marked(path, SpecError)
    if not isinstance(marked.data, dict):
        raise SpecError(f"{display_path(path)}: a conf is a mapping of fields")
    return ConfFile(name or path.stem, path, marked)


def ancestry(conf: ConfFile, roots: Sequence[Path]) -> tuple[ConfFile, ...]:
    """`conf` and all it inherits from; of two files that set one thing the earlier one wins.

    A conf that several others inherit from counts once, so that none of them undoes another. The
    neighbours of a file outside a `conf/` folder come before those of the roots.

    Raises:
        SpecError: a `defaults` list names an unknown conf, or they form a cycle.
    """
    folders = [root / "conf" for root in roots]
    if conf.path.parent.name != "conf":
        folders.insert(0, conf.path.parent)
    weakest_first: list[ConfFile] = []
    visited: set[Path] = set()

    def visit(file: ConfFile, trail: tuple[ConfFile, ...]) -> None:
        if any(file.path == seen.path for seen in trail):
            names = " -> ".join(f.name for f in (*trail, file))
            raise SpecError(
                f"{trail[-1].where(('defaults',))}: defaults go in a circle: {names}. "
                "A conf cannot inherit from itself; give yours another name"
            )
        if file.path in visited:
            return
        visited.add(file.path)
        for name in file.defaults:
            if name == _SELF:
                weakest_first.append(file)
            else:
                visit(_find(name, folders, f"{file.where(('defaults',))}: "), (*trail, file))

    visit(conf, ())
    return tuple(reversed(weakest_first))


def where_set(files: Sequence[ConfFile], key: KeyPath) -> str:
    """ "file:line" of what sets `key` among `files` (as `ancestry` orders them)."""
    for file in files:
        if file.settles(key):
            return file.where(key)
    return max(files, key=lambda file: file.sets(key)).where(key)


def matches_of(
    roots: Sequence[Path], mentioning: Iterable[str] | None = None
) -> Iterator[tuple[ConfFile, dict[str, Any]]]:
    """Every conf that says which checkpoints it is for, with its own `matches`, best root first.

    `matches` is not inherited: a conf that extends another is chosen by name unless it says so.
    With `mentioning`, of the confs of this package only those with one of these texts in them are
    parsed: one or two of a hundred. Those of users are always read, so that a slip in one shows.
    """
    shipped = (PACKAGE_ROOT / "conf").resolve()
    trusted = [root / "conf" for root in roots if (root / "conf").resolve() == shipped]
    seen: set[str] = set()
    for path in _conf_paths(roots):
        if path.stem in seen:
            continue
        seen.add(path.stem)
        if mentioning is not None and path.parent in trusted and not _mentions(path, mentioning):
            continue
        conf = read_conf(path)
        matches = conf.marked.data.get("matches")
        if isinstance(matches, dict):
            yield conf, matches
        elif matches is not None:
            raise SpecError(f"{conf.where(('matches',))}: matches must be a mapping")


def _mentions(path: Path, texts: Iterable[str]) -> bool:
    """Whether a file has one of these texts in it; one that cannot be read is the parser's."""
    try:
        content = path.read_text("utf-8")
    except (OSError, UnicodeDecodeError):
        return True
    return any(text in content for text in texts)


def _conf_paths(roots: Sequence[Path]) -> Iterator[Path]:
    """The files of whole models."""
    for root in roots:
        yield from sorted((root / "conf").glob(_MODELS))
