"""A preflight in a network whose only way out is an HTTP proxy, given by variables of the pod."""

import json
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from finetune_api.messages import PreflightResult, ProgressReport
from finetune_trainer.session.progress import Reporter
from tools.testing.faulty_proxy import FaultyProxy, running_faulty_proxy
from tools.testing.hub_server import running_hub
from tools.testing.operator_messages import PROGRESS
from tools.testing.preflight_image import run_preflight
from tools.testing.trainer_jobs import Workbench
from tools.testing.trainer_pods import listening

HUB = "http://hub.example.test"
"""A name that only the proxy can resolve."""


@pytest.fixture
def proxy(base_model: Path) -> Iterator[FaultyProxy]:
    """Yield a forward proxy to a hub, whatever host is asked for."""
    with running_hub({"acme/tiny": base_model}, gated=set()) as hub:
        port = urlsplit(hub.endpoint).port
        assert port is not None
        with running_faulty_proxy(port) as running:
            yield running


def test_the_preflight_reaches_the_hub_through_the_proxy_and_the_store_without_it(
    bench: Workbench, proxy: FaultyProxy, preflight_image: Path
) -> None:
    code, message, log = run_preflight(
        preflight_image,
        json.dumps(bench.job(model={"uri": "hf://acme/tiny"}, method={"lora": {"rank": 4}})),
        bench.mounts,
        bench.directory,
        HTTP_PROXY=proxy.endpoint,
        NO_PROXY="127.0.0.1",
        HF_ENDPOINT=HUB,
    )
    assert code == 0, log + message.decode()
    assert PreflightResult.model_validate_json(message).problems == []
    assert {urlsplit(path).hostname for _, path, _ in proxy.requests} == {"hub.example.test"}


def test_reports_to_the_operator_never_use_the_proxy(
    proxy: FaultyProxy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    token = tmp_path / "token"
    token.write_text("secret")
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.setenv(name, proxy.endpoint)
    monkeypatch.delenv("NO_PROXY", raising=False)
    monkeypatch.delenv("no_proxy", raising=False)
    report = ProgressReport.model_validate({"kind": "ProgressReport", "progress": PROGRESS})
    with listening() as listener:
        reporter = Reporter(listener.url, token)
        reporter.submit(report)
        assert listener.wait_for(lambda _: True) == report
        reporter.close()
    assert proxy.requests == []
