"""Drive a headless Chromium over its DevTools protocol: show a page, and record its requests and errors."""

import base64
import json
import os
import select
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from devcluster import debian
from devcluster.errors import DevClusterError

FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--hide-scrollbars",
    "--remote-debugging-pipe",
)
PATIENCE_SECONDS = 120.0


class NotInstalledError(Exception):
    """There is no Chromium, and this user cannot install one."""


def chromium() -> str:
    """Return the browser's program. On a Debian machine, root installs it first.

    Raises:
        NotInstalledError: There is no Chromium, and it cannot be installed.
    """
    names = ("chromium", "chromium-browser", "google-chrome")
    if program := next(filter(None, map(shutil.which, names)), None):
        return program
    try:
        debian.install({"chromium": "chromium"}, "a test in a browser")
    except DevClusterError as error:
        raise NotInstalledError(str(error)) from error
    return chromium()


@dataclass
class Page:
    """A page in the browser, with its requests for other URLs, and its errors."""

    browser: "Browser"
    session: str
    requests: list[str] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)

    def evaluate(self, expression: str) -> Any:
        """Return the value of a JavaScript expression."""
        answer = self.browser.call("Runtime.evaluate", {"expression": expression, "returnByValue": True}, self.session)
        assert "exceptionDetails" not in answer, answer
        return answer["result"].get("value")

    def picture(self, path: Path) -> None:
        """Save a PNG of the complete page."""
        answer = self.browser.call(
            "Page.captureScreenshot", {"format": "png", "captureBeyondViewport": True}, self.session
        )
        path.write_bytes(base64.b64decode(answer["data"]))


class Browser:
    """A running Chromium."""

    def __init__(self, process: "subprocess.Popen[bytes]", reader: int, writer: int) -> None:
        """Talk to a process through its pipes."""
        self._process, self._reader, self._writer = process, reader, writer
        self._number, self._rest = 0, b""
        self._events: list[dict[str, Any]] = []

    def show(self, file: Path, width: int, scheme: str, height: int = 800) -> Page:
        """Open a file on a screen of this width, with ``scheme`` dark or light preferred."""
        target = self.call("Target.createTarget", {"url": "about:blank"})["targetId"]
        session = self.call("Target.attachToTarget", {"targetId": target, "flatten": True})["sessionId"]
        for domain in ("Page", "Network", "Runtime", "Log"):
            self.call(f"{domain}.enable", {}, session)
        size = {"width": width, "height": height, "deviceScaleFactor": 2 if width < 600 else 1, "mobile": width < 600}
        self.call("Emulation.setDeviceMetricsOverride", size, session)
        media = {"features": [{"name": "prefers-color-scheme", "value": scheme}]}
        self.call("Emulation.setEmulatedMedia", media, session)
        self._events.clear()
        self.call("Page.navigate", {"url": file.as_uri()}, session)
        page = Page(self, session)
        while not any(event["method"] == "Page.loadEventFired" for event in self._events):
            self._events.append(self._read())
        page.evaluate("document.fonts.ready.then(() => 1)")
        for event in self._events:
            parameters = event["params"]
            if event["method"] == "Network.requestWillBeSent" and parameters["request"]["url"] != file.as_uri():
                page.requests.append(parameters["request"]["url"])
            elif event["method"] in ("Runtime.consoleAPICalled", "Runtime.exceptionThrown", "Log.entryAdded"):
                page.errors.append(json.dumps(parameters))
        return page

    def call(self, method: str, parameters: dict[str, Any], session: str | None = None) -> dict[str, Any]:
        """Send a command and wait for its answer. Events that come meanwhile are kept."""
        self._number += 1
        message: dict[str, Any] = {"id": self._number, "method": method, "params": parameters}
        if session:
            message["sessionId"] = session
        os.write(self._writer, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._read()
            if answer.get("id") == self._number:
                assert "error" not in answer, answer
                result: dict[str, Any] = answer["result"]
                return result
            self._events.append(answer)

    def _read(self) -> dict[str, Any]:
        deadline = time.monotonic() + PATIENCE_SECONDS
        while b"\0" not in self._rest:
            ready, _, _ = select.select([self._reader], [], [], max(deadline - time.monotonic(), 0))
            piece = os.read(self._reader, 1 << 20) if ready else b""
            assert piece, "Chromium does not answer"
            self._rest += piece
        message, _, self._rest = self._rest.partition(b"\0")
        parsed: dict[str, Any] = json.loads(message)
        return parsed


@contextmanager
def running_browser(directory: Path) -> Iterator[Browser]:
    """Run a Chromium with a new profile below ``directory``, for the length of a ``with`` block."""
    program = chromium()
    theirs_in, ours_out = os.pipe()
    ours_in, theirs_out = os.pipe()
    profile = f"--user-data-dir={directory / 'profile'}"
    # the program expects its pipes at the descriptors 3 and 4; Debian's sh knows no descriptor of two digits
    wrapped = [
        "bash",
        "-c",
        f'exec "$@" 3<&{theirs_in} 4>&{theirs_out}',
        "bash",
        program,
        *FLAGS,
        profile,
        "about:blank",
    ]
    # its locks and sockets are in a directory of a short name, because a socket's path has at most 107 characters
    sockets = tempfile.mkdtemp(prefix="browser-")
    with (directory / "chromium.log").open("wb") as log:
        environment = {**os.environ, "TMPDIR": sockets}
        process = subprocess.Popen(wrapped, pass_fds=(theirs_in, theirs_out), stdout=log, stderr=log, env=environment)
    os.close(theirs_in)
    os.close(theirs_out)
    try:
        yield Browser(process, ours_in, ours_out)
    finally:
        process.terminate()
        try:
            process.wait(timeout=20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        os.close(ours_in)
        os.close(ours_out)
        shutil.rmtree(sockets, ignore_errors=True)
