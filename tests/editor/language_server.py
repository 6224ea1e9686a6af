"""A client of a language server over stdio: what an editor does, and nothing more.

https://microsoft.github.io/language-server-protocol/. Messages are JSON behind a header that says
how long they are; the server is asked, and it tells of diagnostics when it likes.
"""

from __future__ import annotations

import itertools
import json
import os
import select
import shutil
import subprocess
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

NAME = "yaml-language-server"
LONGEST = 60.0  # seconds that an answer may take


def find_server() -> str | None:
    """The path of yaml-language-server: $YAML_LANGUAGE_SERVER, or what is installed."""
    return os.environ.get("YAML_LANGUAGE_SERVER") or shutil.which(NAME)


@contextmanager
def language_server(executable: str, root: Path) -> Iterator[LanguageServer]:
    """A running server that has been told of the folder `root`."""
    process = subprocess.Popen(
        [executable, "--stdio"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        cwd=root,
    )
    try:
        server = LanguageServer(process)
        server.start(root)
        yield server
        server.ask("shutdown", None)
        server.tell("exit", None)
        process.wait(LONGEST)
    finally:
        process.kill()
        process.wait()
        for stream in (process.stdin, process.stdout):
            stream.close()


class LanguageServer:
    """One server; `open` shows it texts as an editor would."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self._process = process
        self._ids = itertools.count(1)
        self._buffer = b""
        self._diagnostics: dict[str, list[dict[str, Any]]] = {}

    def start(self, root: Path) -> None:
        """The handshake. Nothing is looked up elsewhere: no schema store."""
        settings = {"yaml": {"schemaStore": {"enable": False}, "validate": True}}
        self._settings = settings
        capabilities = {
            "workspace": {"configuration": True},
            "textDocument": {"publishDiagnostics": {}, "completion": {}},
        }
        folder = {"uri": root.as_uri(), "name": root.name}
        params = {"processId": os.getpid(), "rootUri": root.as_uri(), "capabilities": capabilities}
        self.ask("initialize", {**params, "workspaceFolders": [folder]})
        self.tell("initialized", {})
        self.tell("workspace/didChangeConfiguration", {"settings": settings})

    def open(self, texts: Mapping[Path, str]) -> dict[Path, list[dict[str, Any]]]:
        """Open files, each with the text that the editor has of it; what is said of each.

        A diagnostic has a "message" and a "range" of lines and characters (from 0). The server
        waits a fifth of a second before it looks at a text: many at a time take no longer than one.
        It may look again, so that no path can be opened twice.
        """
        for path, text in texts.items():
            assert path.as_uri() not in self._diagnostics, "what was said before may come late"
            document = {"uri": path.as_uri(), "languageId": "yaml", "version": 1, "text": text}
            self.tell("textDocument/didOpen", {"textDocument": document})
        deadline = time.monotonic() + LONGEST
        while not all(path.as_uri() in self._diagnostics for path in texts):
            self._receive(deadline)
        return {path: self._diagnostics[path.as_uri()] for path in texts}

    def completions(self, path: Path, line: int, character: int) -> list[str]:
        """What is proposed at a place (counted from 0) of an open file."""
        place = {"line": line, "character": character}
        answer = self.ask(
            "textDocument/completion", {"textDocument": {"uri": path.as_uri()}, "position": place}
        )
        items = answer["items"] if isinstance(answer, dict) else answer
        return [item["label"] for item in items]

    def hover(self, path: Path, line: int, character: int) -> str:
        """What is shown when the pointer rests at a place of an open file."""
        place = {"line": line, "character": character}
        answer = self.ask(
            "textDocument/hover", {"textDocument": {"uri": path.as_uri()}, "position": place}
        )
        return "" if answer is None else answer["contents"]["value"]

    def ask(self, method: str, params: Any) -> Any:
        """Send a request and wait for its answer; what else arrives is dealt with."""
        number = next(self._ids)
        self._send({"id": number, "method": method, "params": params})
        deadline = time.monotonic() + LONGEST
        while True:
            message = self._receive(deadline)
            if message.get("id") == number and "method" not in message:
                assert "error" not in message, message["error"]
                return message["result"]

    def tell(self, method: str, params: Any) -> None:
        """Send a notification."""
        self._send({"method": method, "params": params})

    def _send(self, message: dict[str, Any]) -> None:
        body = json.dumps({"jsonrpc": "2.0", **message}).encode()
        self._process.stdin.write(b"Content-Length: %d\r\n\r\n" % len(body) + body)
        self._process.stdin.flush()

    def _receive(self, deadline: float) -> dict[str, Any]:
        """The next message; the server's own questions are answered on the way."""
        while b"\r\n\r\n" not in self._buffer:
            self._read(deadline)
        header, _, self._buffer = self._buffer.partition(b"\r\n\r\n")
        lengths = [line for line in header.split(b"\r\n") if line.startswith(b"Content-Length:")]
        length = int(lengths[0].partition(b":")[2])
        while len(self._buffer) < length:
            self._read(deadline)
        body, self._buffer = self._buffer[:length], self._buffer[length:]
        message = json.loads(body)
        if message.get("method") == "textDocument/publishDiagnostics":
            self._diagnostics[message["params"]["uri"]] = message["params"]["diagnostics"]
        elif "method" in message and "id" in message:
            self._send({"id": message["id"], "result": self._answer(message)})
        return message

    def _answer(self, message: dict[str, Any]) -> Any:
        """What the server wants to know: the settings of the sections that it names."""
        if message["method"] != "workspace/configuration":
            return None
        return [self._settings.get(item.get("section"), {}) for item in message["params"]["items"]]

    def _read(self, deadline: float) -> None:
        ready, _, _ = select.select([self._process.stdout], [], [], deadline - time.monotonic())
        if not ready:
            raise TimeoutError(f"the language server has said nothing for {LONGEST:.0f} s")
        data = os.read(self._process.stdout.fileno(), 1 << 16)
        if not data:
            raise EOFError("the language server has ended")
        self._buffer += data
