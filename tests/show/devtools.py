"""A headless Chromium driven over the DevTools protocol, through pipes: no driver, no port.

https://chromedevtools.github.io/devtools-protocol/. Messages are JSON, each ended by a zero byte;
the browser reads them from its file descriptor 3 and writes to 4.
"""

from __future__ import annotations

import base64
import fcntl
import itertools
import json
import os
import select
import shutil
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

NAMES = ("chromium-headless-shell", "chromium", "chromium-browser", "google-chrome")
LONGEST = 60.0  # seconds that an answer may take


def find_chromium() -> str | None:
    """The browser's path: $CHROMIUM, or what is installed."""
    return os.environ.get("CHROMIUM") or next(filter(None, map(shutil.which, NAMES)), None)


@contextmanager
def browser(executable: str, profile: Path) -> Iterator[Browser]:
    """A running browser with an empty profile."""
    (child_in, ours_out), (ours_in, child_out) = os.pipe(), os.pipe()
    quiet = os.open(os.devnull, os.O_RDWR)
    arguments = (
        executable,
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--hide-scrollbars",
        "--no-first-run",
        f"--user-data-dir={profile}",
        "--remote-debugging-pipe",
    )
    # Out of the way first: one that already is 3 or 4 would be overwritten by the other.
    above = [fcntl.fcntl(fd, fcntl.F_DUPFD, 10) for fd in (child_in, child_out)]
    actions = [
        (os.POSIX_SPAWN_DUP2, quiet, 1),
        (os.POSIX_SPAWN_DUP2, quiet, 2),
        (os.POSIX_SPAWN_DUP2, above[0], 3),
        (os.POSIX_SPAWN_DUP2, above[1], 4),
    ]
    pid = os.posix_spawn(executable, arguments, os.environ, file_actions=actions)
    for fd in (child_in, child_out, quiet, *above):
        os.close(fd)
    running = Browser(ours_in, ours_out)
    try:
        yield running
        running.call("Browser.close")
    except BaseException:
        os.kill(pid, signal.SIGKILL)
        raise
    finally:
        os.waitpid(pid, 0)
        os.close(ours_in)
        os.close(ours_out)


class Browser:
    """One browser; `page` opens a tab."""

    def __init__(self, reads: int, writes: int) -> None:
        self._reads, self._writes = reads, writes
        self._ids, self._buffer = itertools.count(1), b""
        self.events: list[dict[str, Any]] = []

    def call(self, method: str, session: str | None = None, **params: Any) -> dict[str, Any]:
        """Send a command and wait for its answer; events on the way are kept."""
        number = next(self._ids)
        message = {"id": number, "method": method, "params": params}
        if session is not None:
            message["sessionId"] = session
        os.write(self._writes, json.dumps(message).encode() + b"\0")
        deadline = time.monotonic() + LONGEST
        while True:
            answer = self._receive(deadline)
            if answer.get("id") == number:
                assert "error" not in answer, (method, answer["error"])
                return answer["result"]
            self.events.append(answer)

    def _receive(self, deadline: float) -> dict[str, Any]:
        while b"\0" not in self._buffer:
            ready, _, _ = select.select([self._reads], [], [], max(0, deadline - time.monotonic()))
            assert ready, "the browser does not answer"
            chunk = os.read(self._reads, 1 << 20)
            assert chunk, "the browser has ended"
            self._buffer += chunk
        message, _, self._buffer = self._buffer.partition(b"\0")
        return json.loads(message)

    def page(
        self,
        file: Path,
        *,
        at: str = "",
        width: int = 1280,
        height: int = 900,
        script: bool = True,
        **media: str,
    ) -> Page:
        """Open a file in a tab, at an element's id, with its scripts or without.

        `prefers_color_scheme="dark"` and the like are media features.
        """
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        page = Page(self, session)
        for domain in ("Page", "Runtime", "Log"):
            page.call(f"{domain}.enable")
        page.resize(width, height)
        features = [{"name": k.replace("_", "-"), "value": v} for k, v in media.items()]
        page.call("Emulation.setEmulatedMedia", features=features)
        page.call("Emulation.setScriptExecutionDisabled", value=not script)
        page.call("Page.navigate", url=f"{file.as_uri()}#{at}" if at else file.as_uri())
        page.until("document.readyState === 'complete'")
        return page


class Page:
    """A tab."""

    def __init__(self, owner: Browser, session: str) -> None:
        self._browser, self._session = owner, session

    def call(self, method: str, **params: Any) -> dict[str, Any]:
        return self._browser.call(method, self._session, **params)

    def resize(self, width: int, height: int, scale: float = 1) -> None:
        """Lay out for a screen of this size in CSS pixels."""
        size = {"width": width, "height": height, "deviceScaleFactor": scale}
        self.call("Emulation.setDeviceMetricsOverride", mobile=width < 500, **size)

    def run(self, script: str) -> Any:
        """The JSON value of an expression (an exception fails the test)."""
        answer = self.call(
            "Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True
        )
        assert "exceptionDetails" not in answer, answer["exceptionDetails"]
        return answer["result"].get("value")

    def until(self, script: str) -> None:
        deadline = time.monotonic() + LONGEST
        while not self.run(script):
            assert time.monotonic() < deadline, script
            time.sleep(0.02)

    def click(self, selector: str) -> None:
        """Press the mouse in the middle of the element, as a person would."""
        place = (
            f"(() => {{ const e = document.querySelector({json.dumps(selector)}); "
            "e.scrollIntoView({block: 'center', behavior: 'instant'}); "
            "const r = e.getBoundingClientRect(); "
            "return [r.x + r.width / 2, r.y + r.height / 2] })()"
        )
        x, y = self.run(place)
        for event in ("mousePressed", "mouseReleased"):
            pressed = {"type": event, "x": x, "y": y, "button": "left", "clickCount": 1}
            self.call("Input.dispatchMouseEvent", **pressed)

    def press(self, key: str) -> None:
        for event in ("keyDown", "keyUp"):
            self.call("Input.dispatchKeyEvent", type=event, key=key, code=key)

    def type(self, text: str) -> None:
        self.call("Input.insertText", text=text)

    def seen(self, selector: str) -> int:
        """How many such elements are to be seen; ours, whether the page's scripts run or not."""
        return self.run(
            f"[...document.querySelectorAll({json.dumps(selector)})]"
            ".filter(e => e.checkVisibility()).length"
        )

    def forget(self) -> None:
        """Take back what the console was told so far."""
        self._browser.events.clear()

    def complaints(self) -> list[str]:
        """What the console was told: errors, warnings, exceptions, refusals by the policy."""
        found = []
        for event in self._browser.events:
            if event.get("sessionId") != self._session:
                continue
            if event["method"] in ("Runtime.exceptionThrown", "Log.entryAdded"):
                found.append(json.dumps(event["params"]))
            elif event["method"] == "Runtime.consoleAPICalled":
                found.append(json.dumps(event["params"]["args"]))
        return found

    def screenshot(self, file: Path) -> None:
        data = self.call("Page.captureScreenshot", format="png")["data"]
        file.write_bytes(base64.b64decode(data))
