"""People and clocks interfere with a job: it ends as it does without them."""

import contextlib
import threading
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from kubernetes.client.exceptions import NotFoundException

from devcluster.cluster import Cluster
from finetune_api.timestamps import format_timestamp
from finetune_operator.kube.kinds import ATTEMPT_LABEL, JOB_LABEL, ROLE_LABEL
from tests.operator.test_killed import JOBS, a_hard_life, comparable, never, proxied, undisturbed
from tools.testing import fake_kubelet, kubernetes_api
from tools.testing.kubernetes_api import GROUP, PLURAL, VERSION, Api, Object
from tools.testing.operator_messages import PREFLIGHT_PASSED, SUCCEEDED
from tools.testing.operator_process import Operator
from tools.testing.waiting import until

pytestmark = pytest.mark.cluster
MAX_WRITES = 40
LAST_WRITES = 2.0
"""Seconds within which the writes come that follow the status Ready."""


@pytest.fixture(scope="module")
def expected(cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Object:
    """Return the final status without interference."""
    return run(cluster, tmp_path_factory.mktemp("expected") / "a")


def run(cluster: Cluster, directory: Path) -> Object:
    """Run job a, which is evicted and then runs out of memory, to its end, and return its status."""
    with undisturbed(cluster, directory) as (_, _, api), a_hard_life(api):
        final = api.await_condition("a", "Ready", "True")
        assert api.job_names("a") == JOBS
        return dict(final)


@pytest.mark.chaos("the clock of the nodes is an hour off")
@pytest.mark.parametrize("hours", [-1, 1], ids=["behind", "ahead"])
def test_the_clock_of_a_node_decides_nothing(
    cluster: Cluster, expected: Object, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, hours: int
) -> None:
    def wrong_clock() -> str:
        return format_timestamp(datetime.now(UTC) + timedelta(hours=hours))

    for module in (fake_kubelet, kubernetes_api):
        monkeypatch.setattr(module, "current_timestamp", wrong_clock)
    assert comparable(run(cluster, tmp_path / "a")) == comparable(expected)


def recreate_after(cluster: Cluster, number: int, directory: Path) -> tuple[bool, Object, list[str]]:
    """Delete job a and create it again in the operator's ``number``-th write.

    Returns whether there were so many writes, the final status, and the Jobs.
    """
    directory.mkdir()
    with proxied(cluster, never, directory) as (proxy, operator, _):
        operator.start()
        api = Api(cluster.kubeconfig, operator.namespace)
        address = GROUP, VERSION, operator.namespace, PLURAL, "a"
        recreated = threading.Event()

        def recreate(count: int) -> None:
            if count == number:
                api.custom.delete_namespaced_custom_object(*address)
                api.create_job("a")
                recreated.set()

        proxy.after_write = recreate
        first = api.create_job("a")["metadata"]["uid"]
        with a_hard_life(api):
            until("done", lambda: recreated.is_set() or read_ready(api))
            recreated.wait(LAST_WRITES)
            final: Object = until("ready", lambda: read_ready(api))
        uid = api.finetune_job("a")["metadata"]["uid"]
        until("the first one's Jobs are gone", lambda: uid == first or not list_owned(api, first))
        return recreated.is_set(), final, list_owned(api, uid)


def read_ready(api: Api) -> Object | None:
    """Read the status of job a; None if it is not ready, or has just been deleted."""
    with contextlib.suppress(NotFoundException):
        if api.condition("a", "Ready") == ("True", "AdapterVerified"):
            return dict(api.finetune_job("a")["status"])
    return None


def list_owned(api: Api, uid: str) -> list[str]:
    return sorted(
        job["metadata"]["name"] for job in api.jobs("a") if job["metadata"]["ownerReferences"][0]["uid"] == uid
    )


@pytest.mark.chaos("the FineTuneJob is deleted and created again in one of the operator's writes")
@pytest.mark.parametrize("number", [2, pytest.param(0, marks=pytest.mark.exhaustive, id="each")])
def test_a_job_that_was_created_again_in_mid_write_is_a_new_job(
    cluster: Cluster, expected: Object, tmp_path: Path, number: int
) -> None:
    for write in [number] if number else range(1, MAX_WRITES):
        was_recreated, final, jobs = recreate_after(cluster, write, tmp_path / f"write-{write}")
        assert comparable(final) == comparable(expected), f"in write {write}"
        assert jobs == JOBS, f"in write {write}"
        if not was_recreated:
            break
    assert was_recreated == bool(number), "one run comes to its end undisturbed"


EDITS: dict[str, Any] = {
    "no role": {"labels": {ROLE_LABEL: None}},
    "another role": {"labels": {ROLE_LABEL: "preflight"}},
    "no attempt": {"labels": {ATTEMPT_LABEL: None}},
    "a wrong attempt": {"labels": {ATTEMPT_LABEL: "first"}},
    "no label": {"labels": dict.fromkeys((ROLE_LABEL, ATTEMPT_LABEL, JOB_LABEL))},
    "no annotation": {"annotations": {JOB_LABEL: None}},
    "no owner": {"ownerReferences": None},
}


@pytest.mark.chaos("somebody edits the trainer's Job by hand")
@pytest.mark.parametrize("edit", EDITS)
def test_a_job_that_somebody_edits_trains_once(api: Api, operator: Operator, edit: str) -> None:
    name = edit.replace(" ", "-")
    api.create_job(name)
    api.end_pod(f"{name}-preflight", 0, PREFLIGHT_PASSED)
    api.run_pod(f"{name}-train-1")
    api.await_condition(name, "Running", "True")
    api.batch.patch_namespaced_job(f"{name}-train-1", api.namespace, {"metadata": EDITS[edit]})
    api.end_pod(f"{name}-train-1", 0, SUCCEEDED)
    status = api.await_condition(name, "Ready", "True")
    assert [attempt["reason"] for attempt in status["attempts"]] == ["Succeeded"]
    assert "Traceback" not in operator.log.read_text()
