"""Reads which modules the files of this repository import, without importing any of them."""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
# The folders whose Python is the package; the links in assembler/ lead to the last two.
PACKAGE_FOLDERS = ("assembler", "blocks", "kernels")


@dataclass(frozen=True)
class Import:
    """One imported name: `import a.b` and `from a.b import c` are both of module "a.b"."""

    file: Path
    line: int
    module: str
    in_function: bool  # happens when something is called, not when the file is imported

    @property
    def top(self) -> str:
        return self.module.partition(".")[0]

    def __str__(self) -> str:
        return f"{self.file.relative_to(ROOT)}:{self.line} imports {self.module}"


def python_files(folder: str) -> Iterator[Path]:
    """The .py files below a top-level folder; links are not followed."""
    for path in sorted((ROOT / folder).rglob("*.py")):
        if not any(parent.is_symlink() for parent in path.parents):
            yield path


@cache
def imports_of(*folders: str) -> tuple[Import, ...]:
    """All imports in the files of these top-level folders, in the order of files and lines."""
    found = []
    for folder in folders:
        for file in python_files(folder):
            tree = ast.parse(file.read_text("utf-8"), str(file))
            found += _imports(tree, file, in_function=False)
    return tuple(found)


def _imports(node: ast.AST, file: Path, in_function: bool) -> Iterator[Import]:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.Import):
            for alias in child.names:
                yield Import(file, child.lineno, alias.name, in_function)
        elif isinstance(child, ast.ImportFrom):
            assert child.level == 0, f"{file}:{child.lineno}: a relative import"
            yield Import(file, child.lineno, child.module or "", in_function)
        else:
            inside = in_function or isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef)
            yield from _imports(child, file, inside)


def third_party(*folders: str) -> dict[str, list[Import]]:
    """The imports of these folders that neither Python nor this repository provides, by name."""
    own = {"assembler"}
    for path in python_files("tests"):
        own.add(path.parent.name if path.stem == "__init__" else path.stem)
    found: dict[str, list[Import]] = {}
    for entry in imports_of(*folders):
        if entry.top not in own and entry.top not in sys.stdlib_module_names:
            found.setdefault(entry.top, []).append(entry)
    return found
