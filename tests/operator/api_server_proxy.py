"""Run a proxy in front of the API server, so that a test can kill the operator between any two of its writes."""

import json
import re
import ssl
import threading
from collections.abc import Callable
from dataclasses import dataclass
from http.client import HTTPSConnection
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from kubernetes import client, config


@dataclass(frozen=True)
class Fault:
    """What happens to each second write.

    Attributes:
        status: Status of the answer; 0: the connection ends without one.
        body: The answer.
        headers: More headers of the answer.
        is_carried_out: The API server carries the write out all the same.
    """

    status: int = 0
    body: bytes = b""
    headers: tuple[tuple[str, str], ...] = ()
    is_carried_out: bool = False


class ApiServerProxy(ThreadingHTTPServer):
    """A proxy that takes plain HTTP and sends requests on with the kubeconfig's credentials."""

    daemon_threads = True

    def __init__(self, kubeconfig: Path, after_write: Callable[[int], None]) -> None:
        """Listen on a free port.

        Args:
            kubeconfig: Address and credentials of the API server.
            after_write: Called with the number of each write, once the server has carried it out. The answer to the
                write goes back after this call: an operator that is killed in it does not learn that it wrote.
        """
        super().__init__(("127.0.0.1", 0), Handler)
        settings = client.Configuration()
        config.load_kube_config(config_file=str(kubeconfig), client_configuration=settings)
        self.upstream = urlsplit(settings.host)
        self.tls = ssl.create_default_context(cafile=settings.ssl_ca_cert)
        if settings.cert_file:
            self.tls.load_cert_chain(settings.cert_file, settings.key_file)
        self.authorization = settings.get_api_key_with_prefix("BearerToken", alias="authorization")
        self.after_write = after_write
        self.silent = ""
        """Watches of this kind, by its plural, tell nothing more."""
        self.broken = ""
        """Watches of this kind break at their next event, and new ones are refused."""
        self.outdated = ""
        """The next watch of this kind begins at a resource version that the API server no longer has."""
        self.cuts = 0
        """How many watches broke."""
        self.fault: Fault | None = None
        """What happens to each second write."""
        self.faults = 0
        self.attempted = 0
        self.writes: list[str] = []
        self.lock = threading.Lock()

    def kubeconfig(self, directory: Path) -> Path:
        """Write a kubeconfig for this proxy, and return its path."""
        file = directory / "kubeconfig"
        named = {"name": "proxy"}
        content = {
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [{**named, "cluster": {"server": f"http://127.0.0.1:{self.server_port}"}}],
            "users": [{**named, "user": {}}],
            "contexts": [{**named, "context": {"cluster": "proxy", "user": "proxy"}}],
            "current-context": "proxy",
        }
        file.write_text(json.dumps(content))
        return file

    def wrote(self, request_line: str) -> None:
        """Count a write that was carried out."""
        with self.lock:
            self.writes.append(request_line)
            self.after_write(len(self.writes))

    def next_fault(self) -> Fault | None:
        """Count a write that is asked for, and return what happens to it."""
        with self.lock:
            self.attempted += 1
            fault = self.fault if self.attempted % 2 else None
            self.faults += fault is not None
            return fault

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Ignore errors of the connection: the operator may have been killed."""


class Handler(BaseHTTPRequestHandler):
    """Send one request on, and its answer back."""

    protocol_version = "HTTP/1.1"
    server: ApiServerProxy

    def _forward(self) -> None:
        length = int(self.headers.get("Content-Length") or 0)
        body = self.rfile.read(length) if length else None
        headers = {
            name: value
            for name, value in self.headers.items()
            if name.lower() not in ("host", "accept-encoding", "connection")
        }
        if self.server.authorization:
            headers["Authorization"] = self.server.authorization
        target = self.server.upstream
        connection = HTTPSConnection(str(target.hostname), target.port, context=self.server.tls)
        if self._watches(self.server.broken):
            self._send(503, "text/plain", b"broken")
            return
        if self._watches(self.server.outdated):
            self.server.outdated = ""
            self.path = re.sub(r"resourceVersion=\d+", "resourceVersion=1", self.path)
        is_write = self.command != "GET" and "tokenreviews" not in self.path
        fault = self.server.next_fault() if is_write else None
        if fault is not None and not fault.is_carried_out:
            self._fail(fault)
            return
        try:
            connection.request(self.command, self.path, body, headers)
            answer = connection.getresponse()
            if is_write:
                content = answer.read()
                if answer.status < 300:
                    self.server.wrote(f"{self.command} {urlsplit(self.path).path}")
                if fault is not None:
                    self._fail(fault)
                    return
                self._send(answer.status, answer.getheader("Content-Type", ""), content)
            else:
                self._stream(answer)
        finally:
            connection.close()

    do_GET = do_POST = do_PATCH = do_PUT = do_DELETE = _forward  # noqa: N815 -- http.server's names

    def _watches(self, plural: str) -> bool:
        """Return whether the request is a watch of this kind."""
        return "watch=" in self.path and urlsplit(self.path).path.endswith(f"/{plural}")

    def _fail(self, fault: Fault) -> None:
        if fault.status:
            self._send(fault.status, "application/json", fault.body, fault.headers)
        else:
            self.close_connection = True

    def _send(self, status: int, content_type: str, content: bytes, headers: tuple[tuple[str, str], ...] = ()) -> None:
        self.send_response(status)
        for name, value in headers:
            self.send_header(name, value)
        self.send_header("Content-Type", content_type)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def _stream(self, answer: Any) -> None:
        """Pass an answer on as it comes: a list ends, a watch goes on."""
        self.send_response(answer.status)
        self.send_header("Content-Type", answer.getheader("Content-Type", ""))
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        while chunk := answer.read1(65536):
            if self._watches(self.server.silent):
                continue
            if self._watches(self.server.broken):
                self.server.cuts += 1
                self.close_connection = True
                return
            self.wfile.write(b"%x\r\n%s\r\n" % (len(chunk), chunk))
            self.wfile.flush()
        self.wfile.write(b"0\r\n\r\n")

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 -- the name of the base class
        """Write no log."""
