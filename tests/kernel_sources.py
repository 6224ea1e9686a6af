"""Which code the tables of docs/kernels.md are made from, and a digest of it.

Compiling takes minutes, so the page keeps the digest: a test that compiles nothing asks for a new
page when the code has changed.
"""

from __future__ import annotations

import ast
import hashlib
import io
import tokenize
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]
WORKER = ROOT / "tests" / "kernels" / "ahead_of_time.py"
SAYS_HOW = ("tiling", "splits", "gpu")  # endings of files that say how kernels are launched


def digest() -> str:
    """Of all code that decides what is compiled and reported; comments do not count."""
    code = "\0".join(
        f"{file.name}\0{code_of(file.read_text('utf-8'))}" for file in compiled_files()
    )
    return hashlib.sha256(code.encode()).hexdigest()[:16]


def compiled_files() -> list[Path]:
    """The script that compiles, its cases, and of what these import the kernels and tilings."""
    waiting, found = [WORKER], set()
    while waiting:
        file = waiting.pop()
        if file not in found and file.exists():
            found.add(file)
            waiting += _imported(file)
    return sorted(
        file
        for file in found
        if file.parent == WORKER.parent
        or "import triton" in file.read_text("utf-8")
        or file.stem.endswith(SAYS_HOW)
    )


def _imported(file: Path) -> Iterator[Path]:
    """Files of kernels and, for the cases, of their neighbours; some need not exist."""
    for node in ast.walk(ast.parse(file.read_text("utf-8"))):
        if not isinstance(node, ast.ImportFrom):
            continue
        package, _, module = (node.module or "").rpartition(".")
        if node.module == "assembler.kernels":
            yield from (ROOT / "kernels" / f"{name.name}.py" for name in node.names)
        elif package == "assembler.kernels":
            yield ROOT / "kernels" / f"{module}.py"
        elif not package:
            yield file.parent / f"{module}.py"


def code_of(source: str) -> str:
    """Python without comments, docstrings and the blank space between its tokens.

    Tokens are joined, since versions of Python cut f-strings differently.
    """
    marks = {tokenize.NEWLINE: "\n", tokenize.INDENT: "\1", tokenize.DEDENT: "\2"}
    skipped = (tokenize.COMMENT, tokenize.NL)
    code, line = [], []
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type not in skipped:
            line.append(token)
        if token.type == tokenize.NEWLINE:
            words = [t for t in line if t.type not in marks]
            if len(words) == 1 and words[0].type == tokenize.STRING:  # a docstring
                line = [t for t in line if t.type in (tokenize.INDENT, tokenize.DEDENT)]
            code += [marks.get(t.type, t.string) for t in line]
            line = []
    return "".join(code)
