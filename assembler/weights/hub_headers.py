"""The headers of a checkpoint on the Hub, by ranged requests: its weights stay where they are.

One request lists the repository's files, JSON files come through the Hub's cache, and of each
safetensors file the first 64 KiB are read, then the rest of its header if that is longer. Files
that are in the cache already are read there.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from assembler.errors import CheckpointError
from assembler.weights.checkpoint_files import (
    CheckpointFiles,
    FileStart,
    LocalFiles,
    read_start,
    start_length,
)
from assembler.weights.hub_source import HubId, cached_snapshot, hub_endpoint, hub_errors

FIRST_BYTES = 64 * 1024  # holds the header of most shards
THREADS = 8
TIMEOUT = 30.0  # seconds in which the Hub must begin to answer
CONTENT_RANGE = re.compile(r"bytes (?P<first>\d+)-\d+/(?P<size>\d+)")


class NoRangesError(CheckpointError):
    """The server only serves whole files, so that headers cannot be read without weights."""


def open_hub(hub_id: HubId) -> CheckpointFiles:
    """The files of a Hub repository, at the commit that its revision names now.

    Where the Hub cannot be asked (`HF_HUB_OFFLINE`, no connection, its servers failing) these are
    the files of the snapshot in the local cache.

    Raises CheckpointError, in one line, when the library or the repository is not to be had, or
    when it has no safetensors.
    """
    with hub_errors(hub_id, "reading the list of its files"):
        from huggingface_hub import HfApi
        from huggingface_hub.errors import HfHubHTTPError, HFValidationError

        api = HfApi(endpoint=hub_endpoint())
        try:
            info = api.model_info(hub_id.repo, revision=hub_id.revision, timeout=TIMEOUT)
        except HFValidationError:
            raise
        except HfHubHTTPError as error:
            if error.response is None or error.response.status_code < 500:
                raise
            return LocalFiles(cached_snapshot(hub_id))
        except Exception:  # whatever keeps the Hub from answering
            return LocalFiles(cached_snapshot(hub_id))
    names = [sibling.rfilename for sibling in info.siblings or ()]
    _check_format(hub_id, names)
    return HubFiles(hub_id, info.sha, names)


class HubFiles:
    """The files of a Hub repository at one commit."""

    if_absent = "The repository lacks it: tell its owners, or try another revision (org/name@...)."

    def __init__(self, hub_id: HubId, commit: str, names: Iterable[str]) -> None:
        self.root = Path(hub_id.text)
        self._hub_id, self._commit = hub_id, commit
        self._names = sorted(names)

    def names(self) -> list[str]:
        return [name for name in self._names if "/" not in name]

    def has(self, name: str) -> bool:
        return name in self._names

    def read(self, name: str) -> bytes:
        with hub_errors(self._hub_id, f"reading {name}"):
            from huggingface_hub import hf_hub_download

            file = hf_hub_download(
                self._hub_id.repo, name, revision=self._commit, endpoint=hub_endpoint()
            )
            return Path(file).read_bytes()

    def starts(self, names: Iterable[str]) -> Iterator[FileStart]:
        from tqdm import tqdm

        names = list(names)
        silent = len(names) == 1 or not sys.stderr.isatty()
        bar = tqdm(
            total=len(names), desc="Reading headers", unit="file", leave=False, disable=silent
        )
        with bar, ThreadPoolExecutor(THREADS, "headers") as threads:
            try:
                for start in threads.map(self._start, names):
                    bar.update()
                    yield start
            finally:
                threads.shutdown(cancel_futures=True)

    def _start(self, name: str) -> FileStart:
        """How one file begins: from the cache if it is there, else from the Hub."""
        with hub_errors(self._hub_id, f"reading the header of {name}"):
            from huggingface_hub import try_to_load_from_cache

            cached = try_to_load_from_cache(self._hub_id.repo, name, revision=self._commit)
            if isinstance(cached, str):
                start = read_start(Path(cached))
                content, size = start.content, start.size
            else:
                content, size = self._fetch(name, 0, FIRST_BYTES)
                wanted = start_length(content)
                if len(content) < wanted and len(content) < size:
                    content += self._fetch(name, len(content), wanted)[0]
                content = content[:wanted]
        remedy = "The repository's file is incomplete: tell its owners."
        return FileStart(self.root / name, content, size, remedy)

    def _fetch(self, name: str, first: int, end: int) -> tuple[bytes, int]:
        """(bytes `first` to `end` of a file, fewer if it ends before; the size of the file)."""
        from huggingface_hub import hf_hub_url
        from huggingface_hub.utils import (
            build_hf_headers,
            hf_raise_for_status,
            http_stream_backoff,
        )

        url = hf_hub_url(self._hub_id.repo, name, revision=self._commit, endpoint=hub_endpoint())
        headers = build_hf_headers()
        headers |= {"Range": f"bytes={first}-{end - 1}", "Accept-Encoding": "identity"}
        with http_stream_backoff("GET", url, headers=headers, timeout=TIMEOUT) as response:
            if response.status_code == 416:  # nothing there to read
                return b"", first
            if response.status_code >= 400:
                response.read()  # the error's text comes with it
                hf_raise_for_status(response)
            size = self._size(name, response, first, end)
            return response.read(), size

    def _size(self, name: str, response: Any, first: int, end: int) -> int:
        """The size of the file, by the headers of the answer; its body is not read yet."""
        length = int(response.headers.get("Content-Length", sys.maxsize))
        found = CONTENT_RANGE.fullmatch(response.headers.get("Content-Range", ""))
        if response.status_code == 206 and found is not None and int(found["first"]) == first:
            if length <= end - first:
                return int(found["size"])
        elif first == 0 and length <= end:  # a file no longer than what was asked for
            return length
        raise NoRangesError(
            f"{self._hub_id.text}: reading the header of {name} failed: the server of HF_ENDPOINT, "
            "or a proxy on the way, does not serve parts of files. Download the model and pass "
            "its folder."
        )


def _check_format(hub_id: HubId, names: Iterable[str]) -> None:
    """Refuse a repository of GGUF files: they are not read from afar."""
    names = sorted(names)
    ggufs = [name for name in names if name.endswith(".gguf")]
    if ggufs and not any(name.endswith(".safetensors") for name in names):
        some = ", ".join(ggufs[:3]) + (f" and {len(ggufs) - 3} more" if len(ggufs) > 3 else "")
        raise CheckpointError(
            f"{hub_id.text}: holds GGUF files only ({some}), which are not read from the Hub. "
            f"Download the one you mean (`hf download {hub_id.repo} {ggufs[0]}`) and pass its path."
        )
