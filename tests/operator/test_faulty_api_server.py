"""Each second write to the API server goes wrong: a job that is evicted and then too large ends as without faults."""

import json
from pathlib import Path
from typing import Any

import pytest

from devcluster.cluster import Cluster
from tests.operator.api_server_proxy import Fault
from tests.operator.test_killed import JOBS, REASONS, a_hard_life, comparable, undisturbed

pytestmark = pytest.mark.cluster


def status(code: int, reason: str, message: str = "a fault") -> bytes:
    """Return the body of an error answer of the API server."""
    content = {"kind": "Status", "apiVersion": "v1", "status": "Failure", "message": message, "reason": reason}
    return json.dumps({**content, "code": code}).encode()


FAULTS = {
    "409": Fault(409, status(409, "Conflict")),
    "429": Fault(429, status(429, "TooManyRequests"), (("Retry-After", "1"),)),
    "500": Fault(500, status(500, "InternalError")),
    "an error of a proxy": Fault(502, b"<html>bad gateway</html>"),
    "the request is lost": Fault(),
    "the answer is lost": Fault(is_carried_out=True),
    "an error after the write took effect": Fault(504, status(504, "Timeout"), is_carried_out=True),
}


@pytest.fixture(scope="module")
def expected(cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Return the final status without faults."""
    final, _ = run(cluster, None, tmp_path_factory.mktemp("expected") / "a")
    return final


def run(cluster: Cluster, fault: Fault | None, directory: Path) -> tuple[dict[str, Any], list[str]]:
    """Run the job to its end; return its status, and the writes that were carried out."""
    with undisturbed(cluster, directory) as (proxy, _, api):
        proxy.fault = fault
        with a_hard_life(api):
            final = api.await_condition("a", "Ready", "True")
        assert proxy.faults > 3 or fault is None
        assert api.job_names("a") == JOBS
        assert [attempt["reason"] for attempt in final["attempts"]] == REASONS
        return final, proxy.writes


@pytest.mark.chaos("each second write to the API server fails")
@pytest.mark.parametrize("name", FAULTS)
def test_each_second_write_fails_and_the_end_is_the_same(
    cluster: Cluster, expected: dict[str, Any], tmp_path: Path, name: str
) -> None:
    final, writes = run(cluster, FAULTS[name], tmp_path / "a")
    assert comparable(final) == comparable(expected)
    created = [path for path in writes if path.startswith("POST") and path.endswith("/jobs")]
    assert len(created) == 3, "no Job was made twice"
