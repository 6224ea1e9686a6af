"""A folder that appears under its name only when all of it is there."""

from __future__ import annotations

import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from assembler.errors import OptionError

# A folder with none of these is not a model's, and is never replaced.
MODEL_FILES = ("config.json", "*.safetensors", "*.gguf")
MODEL_FOLDERS = ("additional_chat_templates", ".cache")  # the latter is huggingface_hub's


@contextmanager
def output_folder(out: Path, *, overwrite: bool = False) -> Iterator[Path]:
    """Yield a temporary folder beside `out`, and give it that name when the block ends well.

    When the block raises, or is interrupted, the temporary folder is removed and `out` is as it
    was.

    Args:
        out: where the folder shall be; its parents are made.
        overwrite: replace a model that is there, with all its files.

    Raises:
        OptionError: `out` is taken, or cannot be written to.
    """
    out = Path(os.path.abspath(out.expanduser()))
    check_free(out, overwrite=overwrite)
    work = _beside(out, "partial")
    try:
        work.mkdir(parents=True)
    except OSError as error:
        raise OptionError(f"out={out}: cannot be written: {error.strerror}") from error
    try:
        yield work
        _put_in_place(work, out)
    finally:
        shutil.rmtree(work, ignore_errors=True)


def check_free(out: Path, *, overwrite: bool = False) -> None:
    """Refuse a name that is taken.

    Raises:
        OptionError: a file, a folder that is no model, or a model and `overwrite` is not set.
    """
    if not os.path.lexists(out):
        return
    if out.is_symlink() or not out.is_dir():
        raise OptionError(f"out={out}: is a file or a link, not a folder")
    if not any(out.iterdir()):
        return
    is_model = any(next(out.glob(pattern), None) for pattern in MODEL_FILES)
    if not overwrite:
        remedy = ", or overwrite=true to replace the whole folder" if is_model else ""
        raise OptionError(f"out={out}: is not empty. Choose another folder{remedy}")
    if not is_model:
        raise OptionError(f"out={out}: holds files but no model; overwrite=true replaces models")
    inside = [d.name for d in out.iterdir() if d.is_dir() and d.name not in MODEL_FOLDERS]
    if inside:
        raise OptionError(
            f"out={out}: holds the folder {inside[0]}, which is no part of a model; overwrite=true "
            "replaces models"
        )


def _put_in_place(work: Path, out: Path) -> None:
    """Rename `work` to `out`; what was there goes once the new folder has its name."""
    if not out.is_dir():
        work.rename(out)
        return
    old = _beside(out, "old")
    out.rename(old)
    try:
        work.rename(out)
    except BaseException:
        old.rename(out)
        raise
    shutil.rmtree(old, ignore_errors=True)


def _beside(out: Path, what: str) -> Path:
    """A hidden name on the same disk that nobody else has."""
    return out.with_name(f".{out.name}.{secrets.token_hex(4)}.{what}")
