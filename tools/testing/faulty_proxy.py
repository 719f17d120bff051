"""Run a proxy in front of one service, which injects faults: refusals, cut transfers, slow answers.

It is also the forward proxy of a client that is told to use one, whatever host the client asks for.
"""

import http.client
import http.server
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Literal
from urllib.parse import urlsplit

from tools.testing.http_server import serving

ProxyFault = tuple[int, str] | Literal["cut", "slow"] | None
"""A status with its S3 code; a connection that is cut in the middle of a transfer; an answer that is slow."""


@dataclass
class FaultyProxy:
    """A proxy that runs.

    Attributes:
        endpoint: Its URL.
        choose_fault: Returns the fault for a request, by its method and path; None passes it on.
        requests: Method, path and fault of each request so far. A forward proxy gets the whole URL as the path.
        knows_conditions: Whether the service supports conditional writes; False: it answers them with 501.
    """

    endpoint: str
    choose_fault: Callable[[str, str], ProxyFault] = lambda _method, _path: None
    requests: list[tuple[str, str, ProxyFault]] = field(default_factory=list)
    knows_conditions: bool = True


@contextmanager
def running_faulty_proxy(port: int) -> Iterator[FaultyProxy]:
    """Run a proxy on loopback for the service at ``port``, for the length of a ``with`` block."""

    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def _pass(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            fault = proxy.choose_fault(self.command, self.path)
            is_conditional = "If-Match" in self.headers or "If-None-Match" in self.headers
            if not proxy.knows_conditions and is_conditional and self.command in ("PUT", "POST"):
                fault = 501, "NotImplemented"
            proxy.requests.append((self.command, self.path, fault))
            if isinstance(fault, tuple):
                status, code = fault
                return self._answer(status, f"<Error><Code>{code}</Code><Message>no</Message></Error>".encode(), {})
            if fault == "slow":
                time.sleep(0.5)
            upstream = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
            path = urlsplit(self.path)
            target = path._replace(scheme="", netloc="").geturl()
            upstream.putrequest(self.command, target, skip_host=True, skip_accept_encoding=True)
            for name, value in self.headers.items():
                if name.lower() not in ("expect", "connection"):
                    upstream.putheader(name, value)
            upstream.endheaders()
            if fault == "cut" and body:
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
            return self._answer(answer.status, content, headers, cut=fault == "cut")

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

        def _answer(self, status: int, content: bytes, headers: dict[str, str], *, cut: bool = False) -> None:
            self.send_response(status)
            for name, value in ({"Content-Length": str(len(content))} | headers).items():
                self.send_header(name, value)
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(content[: len(content) // 2] if cut else content)
            if cut:
                self.close_connection = True

    with serving(Handler) as url:
        proxy = FaultyProxy(url)
        yield proxy
