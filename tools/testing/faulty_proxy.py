"""A way to the real S3 service of the tests on which things go wrong: refusals, answers that break off, slowness."""

import http.client
import http.server
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Literal

from tools.testing.http_server import serving

Harm = tuple[int, str] | Literal["cut", "slow"] | None
"""A status with its S3 code; a connection that is cut in the middle of a transfer; an answer that is slow."""


@dataclass
class Way:
    """Everything passes, except what ``harm(method, path)`` says otherwise of."""

    endpoint: str
    harm: Callable[[str, str], Harm] = lambda _method, _path: None
    seen: list[tuple[str, str, Harm]] = field(default_factory=list)


@contextmanager
def way_to(port: int) -> Iterator[Way]:
    """A proxy on loopback before the service at ``port``, for the length of a with block."""

    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def _pass(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            harm = way.harm(self.command, self.path)
            way.seen.append((self.command, self.path, harm))
            if isinstance(harm, tuple):
                status, code = harm
                return self._answer(status, f"<Error><Code>{code}</Code><Message>no</Message></Error>".encode(), {})
            if harm == "slow":
                time.sleep(0.5)
            upstream = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
            upstream.putrequest(self.command, self.path, skip_host=True, skip_accept_encoding=True)
            for name, value in self.headers.items():
                if name.lower() not in ("expect", "connection"):
                    upstream.putheader(name, value)
            upstream.endheaders()
            if harm == "cut" and body:
                upstream.send(body[: len(body) // 2])
                upstream.close()
                self.close_connection = True
                return None
            upstream.send(body)
            answer = upstream.getresponse()
            content = answer.read()
            headers = {
                name: value
                for name, value in answer.getheaders()
                if name.lower() not in ("connection", "transfer-encoding")
            }
            upstream.close()
            return self._answer(answer.status, content, headers, whole=harm != "cut")

        def do_GET(self) -> None:
            self._pass()

        def do_HEAD(self) -> None:
            self._pass()

        def do_PUT(self) -> None:
            self._pass()

        def do_POST(self) -> None:
            self._pass()

        def do_DELETE(self) -> None:
            self._pass()

        def _answer(self, status: int, content: bytes, headers: dict[str, str], *, whole: bool = True) -> None:
            self.send_response(status)
            for name, value in ({"Content-Length": str(len(content))} | headers).items():
                self.send_header(name, value)
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(content if whole else content[: len(content) // 2])
            if not whole:
                self.close_connection = True

    with serving(Handler) as url:
        way = Way(url)
        yield way
