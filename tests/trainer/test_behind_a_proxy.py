"""A preflight in a network whose only way out is an HTTP proxy, given by variables of the pod."""

import http.client
import http.server
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from finetune_api.messages import PreflightResult
from finetune_trainer.session.progress import Reporter
from tools.testing.http_server import serving
from tools.testing.hub_server import Hub, running_hub
from tools.testing.operator_messages import PROGRESS
from tools.testing.preflight_image import run_in_image
from tools.testing.trainer_jobs import Workbench
from tools.testing.waiting import until

HUB = "http://hub.example.test"
"""A name that only the proxy can resolve."""


@dataclass
class Proxy:
    """A forward proxy on loopback, and the hosts that were asked through it."""

    url: str
    hosts: list[str]


@pytest.fixture
def hub(base_model: Path) -> Iterator[Hub]:
    with running_hub({"acme/tiny": base_model}, gated=set()) as running:
        yield running


@pytest.fixture
def proxy(hub: Hub) -> Iterator[Proxy]:
    hosts: list[str] = []
    target = urlsplit(hub.endpoint)

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            self.do_GET()

        def do_POST(self) -> None:
            self.do_GET()

        def do_GET(self) -> None:
            address = urlsplit(self.path)
            hosts.append(address.hostname or "")
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            connection = http.client.HTTPConnection(target.hostname or "", target.port)
            query = f"?{address.query}" if address.query else ""
            connection.request(self.command, address.path + query, body, dict(self.headers))
            answer = connection.getresponse()
            content = answer.read()
            self.send_response(answer.status)
            for name, value in answer.getheaders():
                if name.lower() not in ("connection", "transfer-encoding"):
                    self.send_header(name, value)
            self.end_headers()
            self.wfile.write(content)
            connection.close()

    with serving(Handler) as url:
        yield Proxy(url, hosts)


def test_the_preflight_reaches_the_hub_through_the_proxy_and_the_store_without_it(
    bench: Workbench, hub: Hub, proxy: Proxy, preflight_image: Path, tmp_path: Path
) -> None:
    log = tmp_path / "termination-log"
    environment = {
        "HTTP_PROXY": proxy.url,
        "NO_PROXY": "127.0.0.1",
        "HF_ENDPOINT": HUB,
        "FINETUNE_JOB": json.dumps(bench.job(model={"uri": "hf://acme/tiny"}, method={"lora": {"rank": 4}})),
        "FINETUNE_MOUNTS": str(bench.mounts),
        "FINETUNE_TERMINATION_LOG": str(log),
        "FINETUNE_SCRATCH": str(tmp_path / "scratch"),
        "HOME": str(tmp_path),
    }
    completed = run_in_image(preflight_image, "-m", "finetune_trainer", "preflight", environment=environment)
    assert completed.returncode == 0, completed.stdout + completed.stderr + (log.read_text() if log.exists() else "")
    result = PreflightResult.model_validate_json(log.read_bytes())
    assert result.problems == []
    assert set(proxy.hosts) == {"hub.example.test"}


def test_reports_to_the_operator_never_use_the_proxy(
    proxy: Proxy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from finetune_api.messages import ProgressReport

    token = tmp_path / "token"
    token.write_text("secret")
    received: list[str] = []

    class Operator(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            received.append(self.path)
            self.send_response(200)
            self.send_header("Content-Length", "0")
            self.end_headers()

    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.setenv(name, proxy.url)
    monkeypatch.delenv("NO_PROXY", raising=False)
    monkeypatch.delenv("no_proxy", raising=False)
    with serving(Operator) as url:
        reporter = Reporter(url, token)
        reporter.submit(ProgressReport.model_validate({"kind": "ProgressReport", "progress": PROGRESS}))
        until("the operator has the report", lambda: bool(received))
        reporter.close()
    assert proxy.hosts == []
