"""The built wheel, installed into a clean environment beside Hugging Face's `kernels`.

Needs a package index: the build backend and `kernels` come from there.
"""

from __future__ import annotations

import base64
import csv
import hashlib
import json
import os
import subprocess
import sys
import sysconfig
import zipfile
from dataclasses import dataclass
from pathlib import Path

import pytest
from python_imports import PACKAGE_FOLDERS, ROOT, python_files

pytestmark = pytest.mark.slow

TINY_LLAMA = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "vocab_size": 97,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "rms_norm_eps": 1e-5,
    "hidden_act": "silu",
    "max_position_embeddings": 64,
}
IMPORT_BOTH = """
import assembler, assembler.blocks.norms, assembler.kernels.dispatch, kernels
print(assembler.__file__, assembler.kernels.dispatch.__file__, kernels.__file__, sep="\\n")
"""


def run(*command: str | Path, cwd: Path) -> str:
    """The stdout of a command that must succeed, in an environment without our own variables."""
    ours = ("PYTHONPATH", "ASSEMBLER_PATH")
    environment = {name: value for name, value in os.environ.items() if name not in ours}
    done = subprocess.run(
        [str(part) for part in command], cwd=cwd, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@dataclass(frozen=True)
class Environment:
    """A virtual environment: what is installed into it lies before what the tests run with."""

    folder: Path

    @property
    def python(self) -> Path:
        return self.folder / "bin" / "python"

    @property
    def site_packages(self) -> Path:
        return next(self.folder.glob("lib/python*/site-packages"))

    @classmethod
    def create(cls, folder: Path, *requirements: str | Path) -> Environment:
        """A new environment with these packages alone, and the tests' own behind them."""
        run(sys.executable, "-m", "venv", "--without-pip", folder, cwd=folder.parent)
        new = cls(folder)
        pip = [sys.executable, "-m", "pip", "--python", new.python, "install", "--quiet"]
        run(*pip, "--no-deps", *requirements, cwd=folder.parent)
        # Only now, so that pip did not take the tests' own packages for installed here.
        (new.site_packages / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
        return new

    def record(self, distribution: str) -> dict[str, str]:
        """The sha256 of every file that a distribution installed, by its path."""
        (path,) = self.site_packages.glob(f"{distribution}-*.dist-info/RECORD")
        rows = csv.reader(path.read_text("utf-8").splitlines())
        return {name: digest for name, digest, _ in rows if digest}


@pytest.fixture(scope="module")
def dist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the sdist, the wheel built from it, and below tree/ the wheel of the tree."""
    folder = tmp_path_factory.mktemp("dist")
    run(sys.executable, "-m", "build", "--outdir", folder, ROOT, cwd=folder)
    run(sys.executable, "-m", "build", "--wheel", "--outdir", folder / "tree", ROOT, cwd=folder)
    return folder


@pytest.fixture(scope="module")
def wheel(dist: Path) -> Path:
    (wheel,) = (dist / "tree").glob("*.whl")
    return wheel


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Environment:
    """The wheel beside Hugging Face's kernels, which was there first."""
    folder = tmp_path_factory.mktemp("installed")
    return Environment.create(folder / "venv", "kernels", wheel)


def contents(wheel: Path) -> dict[str, bytes]:
    with zipfile.ZipFile(wheel) as archive:
        return {info.filename: archive.read(info) for info in archive.infolist()}


def package_files() -> dict[str, bytes]:
    """What the wheel must hold besides its metadata: path in the wheel -> contents."""
    code = (path for folder in PACKAGE_FOLDERS for path in python_files(folder))
    data = [path for name in ("conf", "weight_maps") for path in (ROOT / name).rglob("*.yaml")]
    data += (path for path in (ROOT / "kernels" / "cpu").iterdir() if path.suffix in (".cpp", ".h"))
    data += (path for path in (ROOT / "assembler").glob("*/*") if path.suffix in (".css", ".js"))
    files = {path.relative_to(ROOT).as_posix(): path.read_bytes() for path in (*code, *data)}
    return {f"assembler/{name.removeprefix('assembler/')}": text for name, text in files.items()}


def test_the_wheel_holds_the_package_and_nothing_else(wheel):
    files = contents(wheel)
    metadata = {name for name in files if name.split("/")[0].endswith(".dist-info")}
    assert {name: text for name, text in files.items() if name not in metadata} == package_files()
    assert "LICENSE" in {Path(name).name for name in metadata}


def test_the_sdist_builds_the_same_wheel(dist, wheel):
    (from_sdist,) = dist.glob("*.whl")
    assert contents(from_sdist) == contents(wheel)


def test_no_file_of_kernels_is_overwritten(installed):
    ours, theirs = installed.record("model_assembler"), installed.record("kernels")
    assert "kernels/__init__.py" in theirs
    for name, expected in (ours | theirs).items():
        algorithm, _, digest = expected.partition("=")
        found = hashlib.new(algorithm, (installed.site_packages / name).read_bytes()).digest()
        assert base64.urlsafe_b64encode(found).decode().rstrip("=") == digest, name
    assert set(ours) & set(theirs) == set()
    assert {name.split("/")[0].split("-")[0] for name in ours} == {"assembler", "model_assembler"}


def test_both_packages_import_from_elsewhere(installed, tmp_path):
    found = run(installed.python, "-c", IMPORT_BOTH, cwd=tmp_path).splitlines()
    expected = ("assembler/__init__.py", "assembler/kernels/dispatch.py", "kernels/__init__.py")
    assert [Path(path) for path in found] == [installed.site_packages / name for name in expected]


def test_the_command_says_what_it_takes(installed, tmp_path):
    assert "smollm2" in run(installed.python, "-m", "assembler.generate", "--help", cwd=tmp_path)


def test_the_command_generates(installed, tmp_path):
    config = tmp_path / "config.json"
    config.write_text(json.dumps(TINY_LLAMA))
    options = ("load=dummy", f"checkpoint={config}", "prompt=1 2 3", "max_tokens=4")
    text = run(installed.python, "-m", "assembler.generate", *options, cwd=tmp_path)
    assert len(text.split()) == 4
    assert all(0 <= int(token) < TINY_LLAMA["vocab_size"] for token in text.split())


def test_an_editable_install_follows_the_links(tmp_path):
    environment = Environment.create(tmp_path / "venv", "kernels", "--editable", ROOT)
    found = run(environment.python, "-c", IMPORT_BOTH, cwd=tmp_path).splitlines()
    ours = [ROOT / "assembler/__init__.py", ROOT / "assembler/kernels/dispatch.py"]
    assert [Path(path) for path in found] == [
        *ours,
        environment.site_packages / "kernels/__init__.py",
    ]
