"""The operator is killed between any two of its writes: the end is the same."""

import threading
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from devcluster.cluster import Cluster
from tests.operator.api_server_proxy import ApiServerProxy
from tools.testing.fake_kubelet import Kubelet
from tools.testing.kubernetes_api import Api
from tools.testing.operator_messages import PREFLIGHT_PASSED, SUCCEEDED
from tools.testing.operator_process import Operator
from tools.testing.waiting import until

pytestmark = pytest.mark.cluster
TIMES = ("lastTransitionTime", "startedAt", "finishedAt")
MAX_WRITES = 40


def a_preemption_on_the_way(job: str) -> tuple[int, dict[str, Any]]:
    """A good preflight, a preempted attempt, a good one."""
    if "preflight" in job:
        return 0, PREFLIGHT_PASSED
    if job.endswith("-train-1"):
        return 40, {"kind": "TrainerResult", "reason": "Preempted", "message": "asked to stop"}
    return 0, SUCCEEDED


def timeless(value: Any) -> Any:
    """The value without its times."""
    if isinstance(value, dict):
        return {name: timeless(item) for name, item in value.items() if name not in TIMES}
    return [timeless(item) for item in value] if isinstance(value, list) else value


@contextmanager
def proxied(
    cluster: Cluster, deadly: int, directory: Path
) -> Iterator[tuple[ApiServerProxy, Operator, threading.Event]]:
    """Run the operator behind a proxy that kills it after its ``deadly``-th write.

    The event is set when it was killed.
    """
    killed = threading.Event()

    def after_write(number: int) -> None:
        if number == deadly:
            operator.kill()
            killed.set()

    proxy = ApiServerProxy(cluster.kubeconfig, after_write)
    serving = threading.Thread(target=proxy.serve_forever, daemon=True)
    serving.start()
    operator = Operator(proxy.kubeconfig(directory), f"killed-{uuid.uuid4().hex[:8]}", directory / "log")
    cluster.kubectl("create", "namespace", operator.namespace)
    try:
        yield proxy, operator, killed
    finally:
        operator.end()
        proxy.shutdown()
        proxy.server_close()
        cluster.kubectl("delete", "namespace", operator.namespace, "--wait=false")


@contextmanager
def undisturbed(cluster: Cluster, directory: Path) -> Iterator[tuple[ApiServerProxy, Operator, Api]]:
    """Run the operator behind a proxy that kills nobody, with the FineTuneJob ``a``."""
    directory.mkdir()
    with proxied(cluster, 0, directory) as (proxy, operator, _):
        operator.start()
        api = Api(cluster.kubeconfig, operator.namespace)
        api.create_job("a")
        yield proxy, operator, api


def run(cluster: Cluster, deadly: int, directory: Path) -> tuple[bool, dict[str, Any], list[str], list[str]]:
    """Whether it was killed; the final status, the Jobs with how often each was made, and the writes."""
    directory.mkdir()
    with proxied(cluster, deadly, directory) as (proxy, operator, killed):
        operator.start()
        api = Api(cluster.kubeconfig, operator.namespace)
        api.create_job("a")
        with Kubelet(api, "a", a_preemption_on_the_way):
            until(
                "killed or done", lambda: killed.is_set() or api.condition("a", "Ready") == ("True", "AdapterVerified")
            )
            if killed.is_set():
                operator.start()
            status = api.await_condition("a", "Ready", "True")
        return killed.is_set(), status, api.job_names("a"), proxy.writes


@pytest.mark.chaos("kill -9 of the operator after each of its writes")
def test_killed_between_any_two_writes(cluster: Cluster, tmp_path: Path) -> None:
    _, expected, jobs, all_writes = run(cluster, 0, tmp_path / "undisturbed")
    assert jobs == ["a-preflight", "a-train-1", "a-train-2"]
    assert [attempt["reason"] for attempt in expected["attempts"]] == ["Preempted", "Succeeded"]
    for deadly in range(1, MAX_WRITES):
        killed, status, objects, writes = run(cluster, deadly, tmp_path / f"killed-{deadly}")
        assert timeless(status) == timeless(expected), f"after write {deadly} of {all_writes}"
        assert objects == jobs, f"after write {deadly}"
        created = [path for path in writes if path.startswith("POST") and path.endswith("/jobs")]
        assert len(created) == len(jobs), f"a Job was made twice after write {deadly}: {writes}"
        if not killed:
            break
    assert not killed, "it was killed after every one of its writes"
    assert deadly > len(jobs), "there were writes to be killed at"


@pytest.mark.chaos("kill -9 over a finished job, and its Jobs deleted by hand")
def test_a_restart_over_finished_jobs_writes_nothing(cluster: Cluster, tmp_path: Path) -> None:
    with undisturbed(cluster, tmp_path / "finished") as (proxy, operator, api):
        with Kubelet(api, "a", a_preemption_on_the_way):
            api.await_condition("a", "Ready", "True")
        until("the event", api.events)
        before = list(proxy.writes)
        operator.kill()
        for job in api.jobs("a"):
            api.batch.delete_namespaced_job(job["metadata"]["name"], api.namespace, propagation_policy="Background")
        operator.start()
        api.create_job("b")
        until("the other's Job", lambda: api.job_names("b") == ["b-preflight"])
        api.await_condition("b", "Accepted", "True")
        new = proxy.writes[len(before) :]
        assert len(new) >= 2
        about_a = [path for path in new if "/finetunejobs/a/" in path]
        assert about_a == []
        assert api.job_names("a") == []


@pytest.mark.chaos("a silent watch, and a quota that forbids pods")
def test_a_trainer_that_no_watch_has_told_of_gets_no_second_one_beside_it(cluster: Cluster, tmp_path: Path) -> None:
    with undisturbed(cluster, tmp_path / "silent") as (proxy, operator, api):
        api.await_pod("a-preflight")
        with api.forbid_pods():
            api.end_pod("a-preflight", 0, PREFLIGHT_PASSED)
            api.await_condition("a", "Ready", "Unknown", "PodRefused")
            proxy.silent = "pods"
        api.bind_pod("a-train-1", "node-a")
        api.run_pod("a-train-1")

        def count_lists() -> float:
            return operator.metric("finetune_operator_kube_requests_total", verb="list", resource="pods")

        before = count_lists()
        api.batch.delete_namespaced_job("a-train-1", api.namespace, propagation_policy="Orphan")
        until("it asks the API server", lambda: count_lists() > before)
        until("an answer", lambda: api.condition("a", "Running") == ("True", "Training") or len(api.job_names("a")) > 1)
        assert api.job_names("a") == ["a-preflight"], api.finetune_job("a")["status"]
        assert [attempt.get("reason") for attempt in api.finetune_job("a")["status"]["attempts"]] == [None]


@pytest.mark.chaos("a watch that breaks and is refused")
@pytest.mark.parametrize("outdated", [False, True], ids=["it goes on", "its version is too old"])
@pytest.mark.parametrize("plural", ["pods", "jobs", "finetunejobs"])
def test_what_happens_while_a_watch_is_broken_is_found_when_it_goes_on(
    cluster: Cluster, tmp_path: Path, plural: str, outdated: bool
) -> None:
    directory = tmp_path / "broken"
    directory.mkdir()
    with proxied(cluster, 0, directory) as (proxy, operator, _):
        operator.settings["FINETUNE_OPERATOR_RESYNC_SECONDS"] = "3600"
        operator.start()
        api = Api(cluster.kubeconfig, operator.namespace)
        api.create_job("a")
        api.await_pod("a-preflight")
        proxy.broken = plural
        api.end_pod("a-preflight", 0, PREFLIGHT_PASSED)
        api.create_job("b")
        until("the watch broke", lambda: proxy.cuts)
        proxy.outdated = plural if outdated else ""
        proxy.broken = ""
        api.await_condition("a", "PreflightPassed", "True")
        until("a new watch", lambda: not proxy.outdated)
        api.end_pod("b-preflight", 0, PREFLIGHT_PASSED)
        api.await_condition("b", "PreflightPassed", "True")
