"""Many jobs at once while faults of all kinds come one after another: each job ends as without faults."""

import itertools
import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from devcluster.cluster import Cluster
from finetune_operator.kube.kinds import FINETUNE_JOB
from tests.operator.api_server_proxy import ApiServerProxy
from tests.operator.test_faulty_api_server import FAULTS
from tests.operator.test_killed import REASONS, comparable, never, out_of_memory_on_the_way, proxied
from tools.testing.fake_kubelet import Kubelet
from tools.testing.kubernetes_api import GROUP, VERSION, Api, Object
from tools.testing.operator_process import Operator
from tools.testing.waiting import wait_for

pytestmark = pytest.mark.cluster
SECONDS_OF_A_FAULT = 2.0
FAULTS_BETWEEN_KILLS = len(FAULTS)
QUIET_SECONDS = 3.0
POLL_SECONDS = 0.5
TRAINERS = ("train-1", "train-2")
WATCHED = ("pods", "jobs", "finetunejobs")


@contextmanager
def storm(proxy: ApiServerProxy, operator: Operator) -> Iterator[threading.Event]:
    """Inject faults, one after another, while the block lasts. The event is set when the operator was killed.

    Each second write fails in one way and the watches of one kind break; now and then the operator is killed.
    """
    stopping, killed = threading.Event(), threading.Event()

    def inject() -> None:
        kinds = itertools.cycle(WATCHED)
        for number, fault in enumerate(itertools.cycle(FAULTS.values()), start=1):
            proxy.fault, proxy.broken = fault, next(kinds)
            if stopping.wait(SECONDS_OF_A_FAULT):
                return
            proxy.broken = ""
            if number % FAULTS_BETWEEN_KILLS == 0:
                operator.kill()
                killed.set()
                operator.start(wait=False)

    thread = threading.Thread(target=inject, daemon=True)
    thread.start()
    try:
        yield killed
    finally:
        stopping.set()
        thread.join()
        proxy.fault, proxy.broken = None, ""


def list_statuses(api: Api) -> dict[str, Object]:
    """Return the statuses of all FineTuneJobs, by name."""
    answer = api.custom.list_namespaced_custom_object(GROUP, VERSION, api.namespace, FINETUNE_JOB.plural)
    return {item["metadata"]["name"]: item.get("status", {}) for item in answer["items"]}


def is_done(status: Object) -> bool:
    return any(item["type"] == "Ready" and item["status"] == "True" for item in status.get("conditions", ()))


def comparable_with_others(name: str, status: Object) -> Any:
    """Return a status as that of any other job of the same life: without the job's name."""
    return comparable(json.loads(json.dumps(status).replace(name, "NAME")))


@pytest.mark.chaos("many jobs at once; writes fail in all ways, watches break, the operator is killed again and again")
@pytest.mark.parametrize("number", [10, pytest.param(200, marks=[pytest.mark.exhaustive, pytest.mark.timeout(3600)])])
def test_each_of_many_jobs_ends_as_without_faults(cluster: Cluster, tmp_path: Path, number: int) -> None:
    names = [f"job-{index:03}" for index in range(number)]
    with proxied(cluster, never, tmp_path) as (proxy, operator, _):
        operator.start()
        api = Api(cluster.kubeconfig, operator.namespace)

        def await_all(within: float) -> dict[str, Object]:
            def ask() -> dict[str, Object] | None:
                time.sleep(POLL_SECONDS)
                statuses = list_statuses(api)
                return statuses if all(map(is_done, statuses.values())) else None

            return wait_for(ask, within, "all jobs to be done")

        with Kubelet(api, None, out_of_memory_on_the_way, evicted={"undisturbed-train-1"}):
            api.create_job("undisturbed")
            expected = comparable_with_others("undisturbed", await_all(60)["undisturbed"])
        kubelet = Kubelet(api, None, out_of_memory_on_the_way, evicted={f"{name}-train-1" for name in names})
        with kubelet, storm(proxy, operator) as killed:
            for name in names:
                api.create_job(name)
            wait_for(killed.is_set, 120, "a kill")
            statuses = await_all(300 + 8 * number)
        for name in names:
            assert comparable_with_others(name, statuses[name]) == expected, name
            assert [attempt["reason"] for attempt in statuses[name]["attempts"]] == REASONS
        jobs = sorted(job["metadata"]["name"] for job in api.plain(api.batch.list_namespaced_job(api.namespace).items))
        assert jobs == sorted(f"{name}-{job}" for name in ["undisturbed", *names] for job in ("preflight", *TRAINERS))
        created = [path for path in proxy.writes if path.startswith("POST") and path.endswith("/jobs")]
        assert len(created) == 3 * (number + 1), "no Job was made twice"
        wait_for(lambda: operator.get("/readyz")[0] == 200, 60, "the operator to be ready")

        def is_quiet() -> bool:
            before = len(proxy.writes)  # events of the last job may still be on their way
            time.sleep(QUIET_SECONDS)
            return len(proxy.writes) == before

        wait_for(is_quiet, 30, "the operator to have nothing left to write")
