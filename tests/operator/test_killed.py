"""The operator is killed between any two of its writes: the end is the same."""

import threading
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from devcluster.cluster import Cluster
from tests.operator.api_server_proxy import ApiServerProxy
from tools.testing.fake_kubelet import Kubelet, good_run
from tools.testing.kubernetes_api import Api
from tools.testing.operator_messages import PREFLIGHT_PASSED, SUCCEEDED
from tools.testing.operator_process import Operator
from tools.testing.waiting import until

pytestmark = pytest.mark.cluster
TIMES = ("lastTransitionTime", "startedAt", "finishedAt", "activeSeconds")
PODS = ("podName", "podUid", "podCreatedAt")
TOLD = ("message", "exitCode", "nodeName")
"""What an attempt lacks whose pod vanished while the operator was down."""
STRIDE = 5
"""Each run of the test kills the operator after each fifth write, beginning with another one."""


def is_each_fifth(first: int, number: int) -> bool:
    return number % STRIDE == first


def out_of_memory_on_the_way(job: str) -> tuple[int, dict[str, Any]]:
    """Return a good preflight, an attempt that runs out of memory, a good one."""
    if "preflight" in job:
        return 0, PREFLIGHT_PASSED
    if job.endswith("-train-1"):
        return 31, {"kind": "TrainerResult", "reason": "OutOfMemory", "message": "CUDA out of memory"}
    return 0, SUCCEEDED


def a_hard_life(api: Api) -> Kubelet:
    """Return pods of a job that is evicted once, and then runs out of memory once."""
    return Kubelet(api, "a", out_of_memory_on_the_way, evicted={"a-train-1"})


JOBS = ["a-preflight", "a-train-1", "a-train-2"]
REASONS = ["Preempted", "OutOfMemory", "Succeeded"]


def comparable(value: Any) -> Any:
    """Return the value without its times, its pods, and the last words of a pod that was taken away."""
    if isinstance(value, dict):
        left_out = TIMES + PODS + (TOLD if value.get("reason") == "Preempted" else ())
        return {name: comparable(item) for name, item in value.items() if name not in left_out}
    return [comparable(item) for item in value] if isinstance(value, list) else value


def never(_: int) -> bool:
    """Tell whether a write is deadly: none is."""
    return False


@contextmanager
def proxied(
    cluster: Cluster, is_deadly: Callable[[int], bool], directory: Path
) -> Iterator[tuple[ApiServerProxy, Operator, threading.Event]]:
    """Run the operator behind a proxy that kills it after deadly writes, which are counted from 1.

    The event is set when it was killed.
    """
    killed = threading.Event()

    def after_write(number: int) -> None:
        if is_deadly(number):
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
def undisturbed(cluster: Cluster, directory: Path, **spec: Any) -> Iterator[tuple[ApiServerProxy, Operator, Api]]:
    """Run the operator behind a proxy that kills nobody, with the FineTuneJob ``a``."""
    directory.mkdir()
    with proxied(cluster, never, directory) as (proxy, operator, _):
        operator.start()
        api = Api(cluster.kubeconfig, operator.namespace)
        api.create_job("a", **spec)
        yield proxy, operator, api


def run(
    cluster: Cluster, is_deadly: Callable[[int], bool], directory: Path
) -> tuple[int, dict[str, Any], list[str], list[str]]:
    """Run a job; return how often the operator was killed, the final status, the Jobs and the writes."""
    directory.mkdir()
    kills = 0
    with proxied(cluster, is_deadly, directory) as (proxy, operator, killed):
        operator.start()
        api = Api(cluster.kubeconfig, operator.namespace)
        api.create_job("a")
        with a_hard_life(api):
            while api.condition("a", "Ready") != ("True", "AdapterVerified"):
                until(
                    "killed or done",
                    lambda: killed.is_set() or api.condition("a", "Ready") == ("True", "AdapterVerified"),
                )
                if killed.is_set():
                    killed.clear()
                    kills += 1
                    operator.start(wait=False)
        return kills, api.finetune_job("a")["status"], api.job_names("a"), proxy.writes


@pytest.mark.chaos("kill -9 of the operator after each of its writes")
def test_killed_between_any_two_writes(cluster: Cluster, tmp_path: Path) -> None:
    _, expected, jobs, _ = run(cluster, never, tmp_path / "undisturbed")
    assert jobs == JOBS
    assert [attempt["reason"] for attempt in expected["attempts"]] == REASONS
    for first in range(STRIDE):
        is_deadly = partial(is_each_fifth, first)
        kills, status, objects, writes = run(cluster, is_deadly, tmp_path / f"killed-{first}")
        assert comparable(status) == comparable(expected), f"killed {kills} times: {writes}"
        assert objects == jobs
        created = [path for path in writes if path.startswith("POST") and path.endswith("/jobs")]
        assert len(created) == len(jobs), f"a Job was made twice: {writes}"
        assert kills, "it was killed"


@pytest.mark.chaos("kill -9 over a finished job, and its Jobs deleted by hand")
def test_a_restart_over_finished_jobs_writes_nothing(cluster: Cluster, tmp_path: Path) -> None:
    with undisturbed(cluster, tmp_path / "finished") as (proxy, operator, api):
        with Kubelet(api, "a", good_run):
            api.await_condition("a", "Ready", "True")
        # the operator tells the end only after it has read the answer to its last status write
        until("the last event", lambda: "Succeeded" in [event["reason"] for event in api.events()])
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
def test_a_trainer_that_no_watch_reported_gets_no_second_one_beside_it(cluster: Cluster, tmp_path: Path) -> None:
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
def test_what_happens_while_a_watch_is_broken_is_found_when_it_continues(
    cluster: Cluster, tmp_path: Path, plural: str, outdated: bool
) -> None:
    directory = tmp_path / "broken"
    directory.mkdir()
    with proxied(cluster, never, directory) as (proxy, operator, _):
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
