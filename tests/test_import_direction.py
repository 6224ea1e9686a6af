"""Imports run one way, and commands start without torch: read from the source, and run."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
# What the modules of an area may import of this project besides the area itself.
ALLOWED = {
    "assembler.errors": set(),
    "assembler.huge_pages": set(),
    "assembler.interrupts": set(),
    "assembler.kernels": {"errors"},
    "assembler.blocks": {"errors", "kernels"},
    "assembler.weights": {"errors", "huge_pages", "blocks"},
    "assembler.model": {"errors", "kernels", "blocks", "weights"},
    "assembler.tokenizer": {"errors"},
    "assembler.distributed": {"errors", "interrupts", "blocks"},
    "assembler.engine": {"errors", "huge_pages", "interrupts", "blocks", "kernels", "tokenizer"},
}
# Finer than areas: which modules of an area another one may use.
ALLOWED_MODULES = {
    ("assembler.weights", "assembler.blocks"): {"parallel"},
    ("assembler.model", "assembler.weights"): {"yaml_marks"},
    ("assembler.model", "assembler.kernels"): {"fused"},  # what the environment asks for
}
COMMANDS = sorted(
    path.stem
    for path in (ROOT / "assembler").glob("*.py")
    if "run_command(main)" in path.read_text()
)


def _sources() -> Iterator[tuple[str, Path]]:
    """(module name, file) of everything that is imported as `assembler...`."""
    for folder, package in (("assembler", ""), ("blocks", ".blocks"), ("kernels", ".kernels")):
        for file in sorted((ROOT / folder).rglob("*.py")):
            parts = file.relative_to(ROOT / folder).with_suffix("").parts
            if folder == "assembler" and (ROOT / folder / parts[0]).is_symlink():
                continue
            yield ".".join((f"assembler{package}", *(p for p in parts if p != "__init__"))), file


def _imports(file: Path, module: str) -> Iterator[str]:
    """Names of all modules that `file` imports, at any depth."""
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module} has a relative import"
            yield node.module or ""
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def _area(module: str) -> str:
    return ".".join(module.split(".")[:2])


MODULES = dict(_sources())


def test_the_sources_are_found() -> None:
    assert {"assembler", "assembler.model.build", "assembler.blocks.rope"} <= set(MODULES)
    assert set(ALLOWED) <= {_area(module) for module in MODULES}


@pytest.mark.parametrize("module", [m for m in MODULES if _area(m) in ALLOWED])
def test_an_area_imports_only_what_lies_below_it(module: str) -> None:
    area = _area(module)
    for name in _imports(MODULES[module], module):
        if not name.startswith("assembler"):
            assert name.split(".")[0] not in ("blocks", "kernels"), f"a bare import of {name}"
            continue
        other = _area(name)
        if other in (area, "assembler"):
            continue
        assert other.removeprefix("assembler.") in ALLOWED[area], f"{module} imports {name}"
        modules = ALLOWED_MODULES.get((area, other))
        parts = name.split(".")
        if modules is not None and len(parts) > 2:
            assert parts[2] in modules, f"{module} imports {name}"


def test_areas_do_not_import_each_other_in_a_circle() -> None:
    def reach(area: str) -> set[str]:
        below = {f"assembler.{name}" for name in ALLOWED[area]}
        return below.union(*map(reach, below))

    for area in ALLOWED:
        assert area not in reach(area)


def _python(code: str) -> str:
    command = [sys.executable, "-c", code]
    run = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)
    assert run.returncode == 0, run.stderr
    return run.stdout


@pytest.mark.parametrize(
    "module", ["assembler", "assembler.command_line", *(f"assembler.{c}" for c in COMMANDS)]
)
def test_importing_a_command_leaves_torch_alone(module: str) -> None:
    loaded = _python(f"import sys, {module}; print(*sys.modules)").split()
    assert module in loaded
    assert not {"torch", "hydra", "omegaconf", "transformers", "huggingface_hub"} & set(loaded)


@pytest.mark.parametrize("command", COMMANDS)
def test_help_leaves_torch_alone(command: str) -> None:
    code = (
        "import runpy, sys; sys.argv = ['x', '--help']\n"
        f"try: runpy.run_module('assembler.{command}', run_name='__main__')\n"
        "except SystemExit as end: print('status', end.code)\n"
        "print('torch' in sys.modules)"
    )
    *text, status, torch_is_loaded = _python(code).splitlines()
    assert text[0].startswith(f"usage: python -m assembler.{command}")
    assert (status, torch_is_loaded) == ("status 0", "False")


def test_what_generates_text_leaves_torchs_compiler_alone() -> None:
    """It takes a second to import, of the two in which the first token is there."""
    imported = _python("import sys, assembler.llm, assembler.engine.build; print(*sys.modules)")
    loaded = imported.split()
    assert "assembler.engine.model_runner" in loaded
    assert not {"torch._dynamo", "torch._inductor", "triton", "transformers"} & set(loaded)
