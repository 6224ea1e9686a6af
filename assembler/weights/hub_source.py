"""Checkpoints of the Hugging Face Hub, through huggingface_hub (the extra `hub`)."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from assembler.errors import CheckpointError

HUB_ID = re.compile(r"(?P<repo>\w[\w.-]*/\w[\w.-]*)(@(?P<revision>[\w./-]+))?")
# Weights, configuration and tokenizer of the top folder; no pickles, no second copy of the weights.
WANTED = ["*.json", "*.safetensors", "*.jinja", "tokenizer*", "merges.txt", "vocab.txt"]
UNWANTED = ["*/*", "consolidated*.safetensors"]


@dataclass(frozen=True)
class HubId:
    """`org/name`, or `org/name@revision` where the revision is a branch, a tag or a commit."""

    text: str  # as the user wrote it
    repo: str
    revision: str | None

    @classmethod
    def parse(cls, text: str) -> HubId | None:
        """None for a text that is no Hub id."""
        match = HUB_ID.fullmatch(text)
        return None if match is None else cls(text, match["repo"], match["revision"])


def hub_endpoint() -> str | None:
    """`$HF_ENDPOINT` as it is now (huggingface_hub reads it once); None for the Hub itself."""
    return os.environ.get("HF_ENDPOINT", "").rstrip("/") or None


def resolve_hub(hub_id: HubId, *, weights: bool = True) -> Path:
    """The local snapshot of a Hub repository, downloaded if need be; without `weights` the rest.

    Offline (`HF_HUB_OFFLINE=1`, or no connection) the copy in the Hub's own cache is used.

    Raises CheckpointError, in one line, when the library or the repository is not to be had.
    """
    with hub_errors(hub_id, "downloading"):
        from huggingface_hub import snapshot_download

        return Path(
            snapshot_download(
                hub_id.repo,
                revision=hub_id.revision,
                endpoint=hub_endpoint(),
                allow_patterns=WANTED,
                ignore_patterns=UNWANTED if weights else [*UNWANTED, "*.safetensors"],
            )
        )


def cached_snapshot(hub_id: HubId) -> Path:
    """The snapshot in the Hub's cache, without asking the Hub.

    Raises CheckpointError if there is none, or none with weights.
    """
    with hub_errors(hub_id, "looking into the cache"):
        from huggingface_hub import snapshot_download

        folder = Path(
            snapshot_download(
                hub_id.repo,
                revision=hub_id.revision,
                local_files_only=True,
                allow_patterns=WANTED,
                ignore_patterns=UNWANTED,
            )
        )
    if not any(folder.glob("*.safetensors")):
        raise _no_copy(hub_id)
    return folder


@contextmanager
def hub_errors(hub_id: HubId, doing: str) -> Iterator[None]:
    """Turn what huggingface_hub raises inside into CheckpointErrors of one line."""
    try:
        from huggingface_hub import errors as hub
    except ImportError as error:
        raise CheckpointError(
            f"{hub_id.text}: reading from the Hub needs huggingface_hub. "
            "Install it with `pip install 'model-assembler[hub]'`, or pass a local folder."
        ) from error
    try:
        yield
    except CheckpointError:
        raise
    except hub.GatedRepoError as error:
        remedy = f"Accept its terms at {_page(hub_id)} and run `hf auth login` (or set HF_TOKEN)"
        raise _failure(hub_id, "access to it is gated", remedy) from error
    except hub.RepositoryNotFoundError as error:
        remedy = "For a private one run `hf auth login` (or set HF_TOKEN)"
        raise _failure(hub_id, "the Hub has no such public model", remedy) from error
    except hub.RevisionNotFoundError as error:
        reason = f"it has no revision '{hub_id.revision}'"
        raise _failure(hub_id, reason, "Leave the @ out") from error
    except hub.LocalEntryNotFoundError as error:
        raise _no_copy(hub_id) from error
    except hub.HfHubHTTPError as error:
        if error.response is None or error.response.status_code not in (401, 403):
            raise _failure(hub_id, f"{doing} failed: {_one_line(error)}", "Try again") from error
        remedy = "Run `hf auth login` or correct HF_TOKEN, and see that it may read this model"
        raise _failure(hub_id, "the Hub refuses the token in use", remedy) from error
    except Exception as error:  # a proxy, the disk, a broken download: whatever comes up there
        raise _failure(hub_id, f"{doing} failed: {_one_line(error)}", "Try again") from error


def _no_copy(hub_id: HubId) -> CheckpointError:
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE:
        reason = "HF_HUB_OFFLINE is set and no complete copy is in the local cache"
        return _failure(hub_id, reason, "Unset it once, or pass a local folder")
    reason = "the Hub cannot be reached and no complete copy is in the local cache"
    return _failure(hub_id, reason, "Go online once, or pass a local folder")


def _page(hub_id: HubId) -> str:
    return f"{hub_endpoint() or 'https://huggingface.co'}/{hub_id.repo}"


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split()).rstrip(".") or type(error).__name__


def _failure(hub_id: HubId, reason: str, remedy: str) -> CheckpointError:
    return CheckpointError(f"{hub_id.text}: {reason}. {remedy}.")
