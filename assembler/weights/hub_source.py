"""Checkpoints of the Hugging Face Hub, through huggingface_hub (the extra `hub`)."""

from __future__ import annotations

import re
from pathlib import Path

from assembler.errors import CheckpointError

HUB_ID = re.compile(r"(?P<repo>\w[\w.-]*/\w[\w.-]*)(@(?P<revision>[\w./-]+))?")
# Weights, configuration and tokenizer of the top folder; no pickles, no second copy of the weights.
WANTED = ["*.json", "*.safetensors", "*.jinja", "tokenizer*", "merges.txt", "vocab.txt"]
UNWANTED = ["*/*", "consolidated*.safetensors"]


def resolve_hub(text: str) -> Path:
    """The local snapshot of the Hub repository `org/name[@revision]`, downloaded if need be.

    Offline (`HF_HUB_OFFLINE=1`, or no connection) the copy in the Hub's own cache is used.

    Raises CheckpointError, in one line, when the library or the repository is not to be had.
    """
    match = HUB_ID.fullmatch(text)
    assert match is not None, text
    try:
        from huggingface_hub import snapshot_download
        from huggingface_hub.errors import (
            GatedRepoError,
            LocalEntryNotFoundError,
            RepositoryNotFoundError,
            RevisionNotFoundError,
        )
    except ImportError as error:
        raise CheckpointError(
            f"{text}: downloading from the Hub needs huggingface_hub. "
            "Install it with `pip install 'model-assembler[hub]'`, or pass a local folder."
        ) from error
    repo, revision = match["repo"], match["revision"]
    try:
        folder = snapshot_download(
            repo, revision=revision, allow_patterns=WANTED, ignore_patterns=UNWANTED
        )
    except GatedRepoError as error:
        reason, remedy = "access to it is gated", "Accept its terms there and run `hf auth login`"
        raise _failure(text, reason, remedy) from error
    except RepositoryNotFoundError as error:
        reason, remedy = "the Hub has no such public model", "For a private one run `hf auth login`"
        raise _failure(text, reason, remedy) from error
    except RevisionNotFoundError as error:
        raise _failure(text, f"it has no revision '{revision}'", "Leave the @ out") from error
    except LocalEntryNotFoundError as error:
        reason = "the Hub cannot be reached and no copy is in its local cache"
        raise _failure(text, reason, "Go online once, or pass a local folder") from error
    except Exception as error:  # a proxy, the disk, a broken download: whatever comes up there
        reason = " ".join(str(error).split()) or type(error).__name__
        raise _failure(text, f"downloading failed: {reason}", "Try again") from error
    return Path(folder)


def _failure(text: str, reason: str, remedy: str) -> CheckpointError:
    return CheckpointError(f"{text}: {reason}. {remedy}.")
