"""The C++ kernels for CPUs: compiled once for this machine, on first use, where a compiler is.

The library is built with the system's compiler for the very processor (`-march=native`) and kept in
the user's cache folder under a hash of the sources, the flags, the compiler and the processor. It
is an option, never a need: without a compiler, on a system that is not POSIX, or with
`ASSEMBLER_CPU_KERNELS=0`, there is no library and everything runs in torch.
"""

from __future__ import annotations

import ctypes
import hashlib
import logging
import os
import platform
import shutil
import subprocess
import tempfile
from concurrent.futures import ThreadPoolExecutor
from functools import cache, partial
from pathlib import Path

SOURCES = Path(__file__).parent / "cpu"
FLAGS = ("-O3", "-march=native", "-std=c++17", "-ffp-contract=fast", "-fPIC", "-shared", "-pthread")
COMPILE_SECONDS = 50  # nobody waits a minute for a compiler; 7 are usual on two idle cores

_log = logging.getLogger(__name__)


@cache
def cpu_library() -> ctypes.CDLL | None:
    """The library, compiled if need be; None where it cannot be had (the log says why)."""
    if os.name != "posix" or os.environ.get("ASSEMBLER_CPU_KERNELS") == "0":
        return None
    compiler = find_compiler()
    if compiler is None:
        _log.info("no C++ compiler (CXX, c++, g++, clang++): CPU kernels run in torch")
        return None
    try:
        return _open_library(compiler)
    except (OSError, subprocess.SubprocessError) as error:
        reason = getattr(error, "stderr", None) or error
        _log.warning("the CPU kernels do not compile, torch runs in their place: %s", reason)
        return None


def _open_library(compiler: str) -> ctypes.CDLL:
    """The library that is kept, or a new one; raises what `compile_library` does."""
    path = cache_folder() / f"cpu-{_fingerprint(compiler)}.so"
    if os.access(path, os.R_OK):
        try:
            return ctypes.CDLL(str(path))
        except OSError as error:
            _log.warning("%s is damaged and compiled anew: %s", path, error)
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    except OSError as error:
        return _compile_for_this_process(compiler, error)
    if not os.access(path.parent, os.W_OK):
        return _compile_for_this_process(compiler, "it is not writable")
    compile_library(compiler, path)
    return ctypes.CDLL(str(path))


def _compile_for_this_process(compiler: str, reason: object) -> ctypes.CDLL:
    """A library that is gone when the process is: open files need no name."""
    _log.warning(
        "the CPU kernels are compiled at every start, as %s cannot keep them (%s): "
        "let XDG_CACHE_HOME name a folder that can be written",
        cache_folder(),
        reason,
    )
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "cpu.so"
        compile_library(compiler, path)
        return ctypes.CDLL(str(path))


def find_compiler() -> str | None:
    """The path of the system's C++ compiler."""
    names = [os.environ.get("CXX"), "c++", "g++", "clang++"]
    return next((path for name in names if name and (path := shutil.which(name))), None)


def cache_folder() -> Path:
    """Where compiled libraries are kept."""
    root = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(root) / "model-assembler"


def compile_library(compiler: str, path: Path) -> None:
    """Compile the kernels to `path`, which appears whole or not at all, in a folder that exists.

    Raises:
        OSError: the folder cannot be written, or the compiler cannot be run.
        subprocess.SubprocessError: it fails or takes too long.
    """
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        built = Path(folder) / path.name
        sources = sorted(SOURCES.glob("*.cpp"))
        objects = [str(Path(folder) / f"{source.stem}.o") for source in sources]
        commands = [
            ["-c", str(source), "-o", name] for source, name in zip(sources, objects, strict=True)
        ]
        with ThreadPoolExecutor() as pool:  # side by side: they take seconds each
            for _ in pool.map(partial(_run_compiler, compiler), commands):
                pass
        _run_compiler(compiler, [*objects, "-o", str(built)])
        built.replace(path)


def _run_compiler(compiler: str, arguments: list[str]) -> None:
    command = [compiler, *FLAGS, "-w", *arguments]
    subprocess.run(command, check=True, capture_output=True, text=True, timeout=COMPILE_SECONDS)


def _fingerprint(compiler: str) -> str:
    """Changes with whatever the library depends on."""
    digest = hashlib.sha256()
    for source in sorted(SOURCES.iterdir()):
        if source.suffix in (".cpp", ".h"):
            digest.update(source.name.encode() + b"\0" + source.read_bytes())
    stamp = Path(compiler).resolve().stat()
    parts = (*FLAGS, compiler, stamp.st_mtime_ns, stamp.st_size, platform.machine(), _processor())
    digest.update(repr(parts).encode())
    return digest.hexdigest()[:24]


def _processor() -> str:
    """What instructions the processor has, as far as the system says."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:  # not Linux
        return platform.processor()
    wanted = ("model name", "flags", "Features", "CPU part")
    return "\n".join(dict.fromkeys(line for line in lines if line.startswith(wanted)))


@cache
def has_matrix_unit() -> bool:
    """Whether the processor multiplies bfloat16 matrices by itself (Intel's AMX)."""
    return "amx_bf16" in _processor().split()


@cache
def thread_team() -> int | None:
    """Address of GOMP_parallel in the OpenMP runtime that torch runs on; None: it has another.

    Its threads exist already and stay awake between torch's operations and ours; a second pool
    would fight with them for the cores.
    """
    try:
        maps = Path("/proc/self/maps").read_text().splitlines()
    except OSError:
        return None
    paths = dict.fromkeys(line.split(maxsplit=5)[5] for line in maps if "libgomp" in line)
    for path in paths:
        try:
            function = ctypes.CDLL(path).GOMP_parallel
        except (OSError, AttributeError):
            continue
        return ctypes.cast(function, ctypes.c_void_p).value
    return None
