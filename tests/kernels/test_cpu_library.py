"""The compiled kernels are had whenever they can be, and torch runs when they cannot.

A script plays the compiler: it notes that it made a library and copies one that was compiled.
"""

from __future__ import annotations

import logging
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from assembler.kernels import cpu_library as module
from assembler.kernels.cpu_library import cpu_library, find_compiler

COMPILED = """#!/bin/sh
case " $* " in
  *" -c "*) ;; # a part of it
  *) echo made >> {log} ;;
esac
while [ "$1" != "-o" ]; do shift; done
cp {library} "$2"
"""


class Compiler:
    """A script in the place of the compiler."""

    def __init__(self, folder: Path, library: str) -> None:
        self.path, self.log = folder / "c++", folder / "calls"
        self.write(COMPILED.format(log=self.log, library=library))

    def write(self, script: str) -> None:
        self.path.write_text(script)
        self.path.chmod(0o755)

    @property
    def libraries(self) -> int:
        """How many it has made."""
        return self.log.read_text().count("made") if self.log.exists() else 0


def test_the_kernels_compile_where_there_is_a_compiler(monkeypatch: pytest.MonkeyPatch):
    """What needs them is skipped elsewhere; here their absence is a failure."""
    if find_compiler() is None:
        pytest.skip("there is no C++ compiler")
    monkeypatch.delenv("ASSEMBLER_CPU_KERNELS", raising=False)
    assert cpu_library.__wrapped__() is not None


@pytest.fixture(scope="module")
def library() -> str:
    found = cpu_library()
    if found is None:
        pytest.skip("there is no C++ compiler")
    return found._name


@pytest.fixture
def compiler(library: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Compiler]:
    """The only compiler there is, and a cache folder that is not there yet."""
    made = Compiler(tmp_path, library)
    monkeypatch.setenv("CXX", str(made.path))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    cpu_library.cache_clear()
    yield made
    cpu_library.cache_clear()


def kept(tmp_path: Path) -> list[Path]:
    return sorted((tmp_path / "cache" / "model-assembler").iterdir())


def opened_anew() -> bool:
    cpu_library.cache_clear()
    found = cpu_library()
    return found is not None and found.size_of_step() > 0


def test_it_is_compiled_once_and_kept(compiler: Compiler, tmp_path: Path):
    assert opened_anew() and opened_anew()
    assert compiler.libraries == 1
    assert [path.suffix for path in kept(tmp_path)] == [".so"]


def test_other_sources_are_compiled_anew(
    compiler: Compiler, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    assert opened_anew()
    sources = tmp_path / "sources"
    shutil.copytree(module.SOURCES, sources)
    monkeypatch.setattr(module, "SOURCES", sources)
    assert opened_anew() and compiler.libraries == 1  # the same text elsewhere
    with (sources / "tile.h").open("a") as file:
        file.write("// changed\n")
    assert opened_anew() and compiler.libraries == 2
    monkeypatch.setattr(module, "FLAGS", (*module.FLAGS, "-g"))
    assert opened_anew() and compiler.libraries == 3
    assert len(kept(tmp_path)) == 3


def test_a_damaged_library_is_compiled_anew(
    compiler: Compiler, tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    name = f"cpu-{module._fingerprint(str(compiler.path))}.so"
    path = tmp_path / "cache" / "model-assembler" / name
    path.parent.mkdir(parents=True)
    path.write_bytes(b"\x7fELF, and no more")
    assert opened_anew() and compiler.libraries == 1
    assert kept(tmp_path) == [path] and path.stat().st_size > 10_000
    assert "damaged" in caplog.text


def test_a_cache_that_cannot_be_written_costs_a_compilation_each_time(
    compiler: Compiler, tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    (tmp_path / "cache").write_text("a file where the folder should be")
    assert opened_anew() and opened_anew()
    assert compiler.libraries == 2
    assert "XDG_CACHE_HOME" in caplog.text


@pytest.mark.parametrize(
    ("script", "told"),
    [
        ("#!/bin/sh\necho 'tile.h:1: error: no such vector' >&2\nexit 1\n", "no such vector"),
        ("#!/bin/sh\nexec sleep 60\n", "timed out"),
        ("#!/nowhere/sh\n", "No such file"),
    ],
    ids=["fails", "hangs", "does not start"],
)
def test_a_broken_compiler_leaves_it_to_torch(
    compiler: Compiler,
    script: str,
    told: str,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
):
    compiler.write(script)
    monkeypatch.setattr(module, "COMPILE_SECONDS", 0.5)
    assert cpu_library() is None
    assert told in caplog.text
    assert kept(tmp_path) == []  # no half of a library either


def test_without_a_compiler_it_is_left_to_torch(
    compiler: Compiler, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.delenv("CXX")
    monkeypatch.setenv("PATH", "")
    with caplog.at_level(logging.INFO):
        assert cpu_library() is None
    assert "no C++ compiler" in caplog.text


def test_it_can_be_declined(compiler: Compiler, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("ASSEMBLER_CPU_KERNELS", "0")
    assert cpu_library() is None and compiler.libraries == 0


def test_threads_that_compile_at_once_leave_one_whole_library(compiler: Compiler, tmp_path: Path):
    folder = tmp_path / "cache"
    folder.mkdir()
    path = folder / "cpu.so"
    args = (str(compiler.path), path)
    threads = [threading.Thread(target=module.compile_library, args=args) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert compiler.libraries == 4 and list(folder.iterdir()) == [path]
    code = f"import ctypes; print(ctypes.CDLL({str(path)!r}).size_of_step() > 0)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout == "True\n", done.stderr
