"""Requests of analyses to real HTTP servers, and to a real Prometheus."""

import asyncio
import http.server
import json
import subprocess
import threading
import urllib.parse
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar

import pytest
from kubernetes.aio.client import Configuration

from devcluster import debian
from devcluster.cache import cached
from finetune_api.adapterdeployment import Analysis
from finetune_operator.analyses import http as http_analysis
from finetune_operator.analyses.running import Analyses
from finetune_operator.kube.client import Kube
from finetune_operator.policies.analysis import AnalysisId, AnalysisRequest, Outcome, Subject
from tests.adapterdeployment.groups import V1, V2
from tools.testing.http_server import serving
from tools.testing.waiting import free_port, until


def subject(step: int = 1) -> Subject:
    identity = AnalysisId("team", "bot", "u-1", 2, "2026-01-02T03:04:05Z", step, "2026-01-02T03:04:06Z")
    return Subject(identity, "bot-name", V2, V1, ("web-a",), ("web-b",), "bot-name", "bot-name")


def request(analysis: dict[str, Any], step: int = 1) -> AnalysisRequest:
    return AnalysisRequest(Analysis.model_validate(analysis), subject(step))


def no_api_server() -> Kube:
    """Return a client of no API server: these analyses ask none."""
    return Kube(Configuration(host="http://127.0.0.1:1"), lambda *_: None)


def analyse(analysis: dict[str, Any]) -> Outcome:
    """Make an analysis as a pass does, and wait for its end."""

    async def run() -> Outcome:
        ended, analyses = asyncio.Event(), Analyses(no_api_server())
        analyses.start(request(analysis), ended.set)
        await asyncio.wait_for(ended.wait(), 60)
        result = analyses.find(("team", "bot"))
        assert result is not None
        return result[1]

    return asyncio.run(run())


class Hook(http.server.BaseHTTPRequestHandler):
    """Answers as its path says, and keeps what it was sent."""

    requests: ClassVar[list[tuple[str, str, dict[str, str], bytes]]] = []
    hanging: ClassVar[threading.Event] = threading.Event()

    def do_POST(self) -> None:
        content = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.requests.append((self.command, self.path, dict(self.headers), content))
        match self.path.strip("/"):
            case "hang":
                self.hanging.wait(30)
            case "moved":
                self.send_response(302)
                self.send_header("Location", "/204")
                self.end_headers()
            case "endless":
                self.send_response(500)
                self.send_header("Set-Cookie", "a=b")
                self.end_headers()
                try:
                    while True:
                        self.wfile.write(b"x" * 65536)
                except OSError:
                    pass
            case status:
                self.send_response(int(status))
                self.end_headers()
                self.wfile.write(b"" if status == "204" else b"too slow")


@pytest.fixture
def hook(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    Hook.requests.clear()
    Hook.hanging.clear()
    monkeypatch.setattr(http_analysis, "PAUSE_SECONDS", 0.01)
    monkeypatch.setattr(http_analysis, "TIMEOUT_SECONDS", 0.3)
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:1")
    with serving(Hook) as url:
        yield url
        Hook.hanging.set()


@pytest.mark.parametrize(
    ("path", "result", "words", "requests"),
    [
        ("204", "Passed", "answered 204", 1),
        ("500", "Failed", "answered 500: too slow", 1),
        ("moved", "Inconclusive", "redirects are not followed", 1),
        ("endless", "Failed", "answered 500: xxx", 1),
        ("hang", "Inconclusive", "did not answer in 3 attempts", 3),
    ],
)
def test_a_webhook(hook: str, path: str, result: str, words: str, requests: int) -> None:
    outcome = analyse({"webhook": {"url": f"{hook}/{path}"}})
    assert outcome.result == result
    assert words in outcome.message
    assert len(outcome.message) < 500
    assert [request[:2] for request in Hook.requests] == [("POST", f"/{path}")] * requests
    headers = {name.lower() for name in Hook.requests[0][2]}
    assert headers <= {"host", "user-agent", "accept", "accept-encoding", "content-type", "content-length"}
    assert json.loads(Hook.requests[0][3])["metadata"]["pods"] == "web-a"


def test_nobody_at_the_address_is_inconclusive(hook: str) -> None:
    outcome = analyse({"webhook": {"url": f"http://127.0.0.1:{free_port()}"}})
    assert outcome.result == "Inconclusive"
    assert "did not answer in 3 attempts" in outcome.message


def test_one_analysis_runs_once_and_another_takes_its_place(hook: str) -> None:
    async def run() -> None:
        analyses, ends = Analyses(no_api_server()), []
        slow, fast = request({"webhook": {"url": f"{hook}/hang"}}, 1), request({"webhook": {"url": f"{hook}/204"}}, 2)
        for due in (slow, slow, fast, fast):
            analyses.start(due, lambda due=due: ends.append(due.id.step))  # type: ignore[misc]
            await asyncio.sleep(0.1)
        assert ends == [2]
        assert [path for _, path, *_ in Hook.requests] == ["/hang", "/204"]
        assert analyses.find(("team", "bot")) == (fast.id, Outcome("Passed", "the webhook answered 204"))
        analyses.forget(("team", "bot"))
        assert analyses.find(("team", "bot")) is None

    asyncio.run(run())


class Exporter(http.server.BaseHTTPRequestHandler):
    """The metrics of two pods."""

    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "text/plain; version=0.0.4")
        self.end_headers()
        self.wfile.write(b'error_ratio{pod="web-a"} 0.02\nerror_ratio{pod="web-b"} 0.5\nidle 0\n')


@contextmanager
def running_prometheus(directory: Path) -> Iterator[str]:
    """Run a Prometheus of Debian that reads the metrics of ``Exporter``; yield its URL."""
    program = cached(
        "prometheus", "1", "fetching Prometheus", "seconds", lambda target: debian.unpack("prometheus", target)
    )
    address = f"127.0.0.1:{free_port()}"
    with serving(Exporter) as exporter:
        targets = [{"targets": [urllib.parse.urlsplit(exporter).netloc]}]
        job = {"job_name": "pods", "scrape_interval": "1s", "static_configs": targets}
        configuration = directory / "prometheus.json"
        configuration.write_text(json.dumps({"scrape_configs": [job]}))
        arguments = [f"--config.file={configuration}", f"--storage.tsdb.path={directory}/data"]
        command = [str(program / "usr/bin/prometheus"), *arguments, f"--web.listen-address={address}"]
        with (directory / "prometheus.log").open("w") as log:
            process = subprocess.Popen(command, stdout=log, stderr=log)
        try:
            query = f"http://{address}/api/v1/query?query=idle"
            until("the first metrics", lambda: '"idle"' in _read(query))
            yield f"http://{address}"
        finally:
            process.kill()
            process.wait()


def _read(url: str) -> str:
    try:
        with urllib.request.urlopen(url, timeout=5) as answer:
            return str(answer.read().decode())
    except OSError:
        return ""


@pytest.fixture(scope="module")
def prometheus(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with running_prometheus(tmp_path_factory.mktemp("prometheus")) as url:
        yield url


@pytest.mark.cluster
@pytest.mark.parametrize(
    ("query", "bounds", "result", "words"),
    [
        ('error_ratio{pod=~"{{ pods }}"}', {"max": 0.05}, "Passed", "0.02 is within max 0.05"),
        ('error_ratio{pod=~"{{ stablePods }}"}', {"max": 0.05}, "Failed", "0.5 is above max 0.05"),
        (
            'error_ratio{pod=~"{{ pods }}"} / on() error_ratio{pod=~"{{ stablePods }}"}',
            {"max": 1, "min": 0},
            "Passed",
            "0.04",
        ),
        ("scalar(idle)", {"min": 1}, "Failed", "0 is below min 1"),
        ("error_ratio", {"max": 1}, "Inconclusive", "2 results"),
        ('error_ratio{pod="gone"}', {"max": 1}, "Inconclusive", "0 results"),
        ("idle / idle", {"max": 1}, "Inconclusive", "NaN"),
        ("sum(", {"max": 1}, "Inconclusive", "400: "),
    ],
)
def test_a_query_of_a_real_prometheus(
    prometheus: str, query: str, bounds: dict[str, float], result: str, words: str
) -> None:
    outcome = analyse({"prometheus": {"url": prometheus, "query": query, **bounds}})
    assert (outcome.result, words in outcome.message) == (result, True), outcome.message
