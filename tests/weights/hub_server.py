"""The Hub's few endpoints over folders, on this machine, counting every byte that leaves.

Weights are redirected to another host name, as the Hub does to its CDN, and served by ranges.
"""

from __future__ import annotations

import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

ID = r"(?P<repo>[^/]+/[^/]+)"
INFO = re.compile(rf"/api/models/{ID}(/revision/(?P<revision>[^/]+))?")
TREE = re.compile(rf"/api/models/{ID}/tree/(?P<revision>[^/]+)")
RESOLVE = re.compile(rf"(?P<cdn>/cdn)?/{ID}/resolve/(?P<revision>[^/]+)/(?P<file>.+)")
RANGE = re.compile(r"bytes=(?P<first>\d+)-(?P<last>\d+)")


@dataclass(frozen=True)
class Request:
    """One answered request: what was asked for and how many bytes of body went out."""

    method: str
    path: str
    status: int
    nbytes: int
    authorized: bool


@dataclass
class Hub:
    """What the server offers, how it behaves, and what it did."""

    revisions: dict[tuple[str, str], Path] = field(default_factory=dict)
    gated: set[str] = field(default_factory=set)
    token: str = "hf_right"
    ranges: bool = True  # False: whole files whatever is asked for
    down: bool = False  # every answer is 500
    requests: list[Request] = field(default_factory=list)
    endpoint: str = ""

    def add(self, repo: str, folder: Path, revision: str = "main") -> None:
        """Serve `folder` as a revision of `repo`, and under its commit."""
        self.revisions[repo, revision] = folder
        self.revisions[repo, commit_of(folder)] = folder

    def sent(self, suffix: str = "") -> int:
        """Bytes of bodies sent so far, for paths that end in `suffix`."""
        return sum(r.nbytes for r in self.requests if r.path.endswith(suffix))


def commit_of(folder: Path) -> str:
    """A commit for a folder, which no other folder has."""
    return hashlib.sha1(str(folder).encode()).hexdigest()


@contextmanager
def serve(hub: Hub) -> Iterator[Hub]:
    """Run the server in a thread; all its threads have ended afterwards."""

    class Handler(_Handler):
        pass

    Handler.hub = hub
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = False  # server_close waits for them
    hub.endpoint = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


class _Handler(BaseHTTPRequestHandler):
    """Answers one request (HTTP/1.0: one a connection)."""

    hub: Hub

    def do_GET(self) -> None:
        path = unquote(urlsplit(self.path).path)
        if self.hub.down:
            self._send(500, b"out of order")
        elif found := INFO.fullmatch(path):
            self._info(found["repo"], found["revision"] or "main")
        elif found := TREE.fullmatch(path):
            self._tree(found["repo"], found["revision"])
        elif found := RESOLVE.fullmatch(path):
            self._resolve(found)
        else:
            self._send(404, b"")

    do_HEAD = do_GET

    def log_message(self, *args: object) -> None:
        """Say nothing."""

    def _folder(self, repo: str, revision: str) -> Path | None:
        """The folder, or None once the refusal has been sent."""
        folder = self.hub.revisions.get((repo, revision))
        if folder is None:
            known = any(repo == name for name, _ in self.hub.revisions)
            error = "RevisionNotFound" if known else "RepoNotFound"
            self._send(404 if known else 401, b"", {"X-Error-Code": error})
        return folder

    def _info(self, repo: str, revision: str) -> None:
        if self._token() not in ("", self.hub.token):
            message = {"X-Error-Message": "Invalid credentials in Authorization header"}
            self._send(401, b"", message)
        elif folder := self._folder(repo, revision):
            siblings = [{"rfilename": name} for name, _ in _files(folder)]
            info = {"id": repo, "sha": commit_of(folder), "siblings": siblings}
            self._send(200, json.dumps(info).encode())

    def _tree(self, repo: str, revision: str) -> None:
        if folder := self._folder(repo, revision):
            entries = [
                {"type": "file", "path": name, "size": file.stat().st_size, "oid": _etag(file)}
                for name, file in _files(folder)
            ]
            self._send(200, json.dumps(entries).encode())

    def _resolve(self, found: re.Match[str]) -> None:
        folder = self._folder(found["repo"], found["revision"])
        if folder is None:
            return
        file = folder / found["file"]
        headers = {"X-Repo-Commit": commit_of(folder), "Accept-Ranges": "bytes"}
        if not file.is_file():
            self._send(404, b"", {**headers, "X-Error-Code": "EntryNotFound"})
        elif found["repo"] in self.hub.gated and not found["cdn"] and not self._authorized():
            self._send(401, b"", {**headers, "X-Error-Code": "GatedRepo"})
        elif file.suffix == ".safetensors" and not found["cdn"]:
            headers["Location"] = f"{self.hub.endpoint}/cdn{self.path}".replace(
                "127.0.0.1", "localhost"
            )
            headers["X-Linked-Size"] = str(file.stat().st_size)
            headers["X-Linked-Etag"] = f'"{_etag(file)}"'
            self._send(302, b"", headers)
        else:
            self._send_file(file, {**headers, "ETag": f'"{_etag(file)}"'})

    def _send_file(self, file: Path, headers: dict[str, str]) -> None:
        size = file.stat().st_size
        asked = RANGE.fullmatch(self.headers.get("Range", "")) if self.hub.ranges else None
        if self.command == "HEAD" or asked is None:
            body = b"" if self.command == "HEAD" else file.read_bytes()
            self._send(200, body, {**headers, "Content-Length": str(size)})
            return
        first, last = int(asked["first"]), min(int(asked["last"]), size - 1)
        if first > last:
            self._send(416, b"", {**headers, "Content-Range": f"bytes */{size}"})
            return
        with file.open("rb") as stream:
            stream.seek(first)
            body = stream.read(last - first + 1)
        self._send(206, body, {**headers, "Content-Range": f"bytes {first}-{last}/{size}"})

    def _send(self, status: int, body: bytes, headers: dict[str, str] | None = None) -> None:
        path, body = unquote(urlsplit(self.path).path), body if self.command == "GET" else b""
        length = (headers or {}).pop("Content-Length", str(len(body)))
        # Noted before it is sent: whoever has the answer finds it counted.
        request = Request(self.command, path, status, len(body), self._token() != "")
        self.hub.requests.append(request)
        self.send_response(status)
        for name, value in {**(headers or {}), "Content-Length": length}.items():
            self.send_header(name, value)
        self.end_headers()
        with suppress(ConnectionError):  # the client has seen enough
            self.wfile.write(body)

    def _token(self) -> str:
        return self.headers.get("Authorization", "").removeprefix("Bearer ")

    def _authorized(self) -> bool:
        return self._token() == self.hub.token


def _files(folder: Path) -> Iterator[tuple[str, Path]]:
    """(path in the repository, file) of all files."""
    for file in sorted(folder.rglob("*")):
        if file.is_file():
            yield str(file.relative_to(folder)), file


def _etag(file: Path) -> str:
    return hashlib.sha1(f"{file}:{file.stat().st_size}".encode()).hexdigest()
