"""Create resources one after another at an idle operator, and measure how soon each has its first Job."""

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from pathlib import Path

from bench.operator import audit, kubeflow
from bench.operator.at_once import WARM_UP, end_pod, find_first_jobs, follow
from bench.operator.contender import Contender, make_contender
from bench.operator.scenario import PAUSE_SECONDS
from devcluster.cluster import Cluster
from tools.testing.kubernetes_api import Api, Object
from tools.testing.operator_process import Operator
from tools.testing.waiting import until


def measure(
    cluster: Cluster, namespace: str, runs: int, directory: Path, progress: Callable[[int], None]
) -> list[float]:
    """Create FineTuneJobs one after another; return the milliseconds from each creation to its first Job."""
    api = Api(cluster.kubeconfig, namespace)
    operator = Operator(cluster.kubeconfig, namespace, directory / "operator.log").start()
    try:
        return measure_contender(cluster, api, make_contender(api, operator), runs, progress)
    finally:
        operator.stop()


def measure_kubeflow(
    cluster: Cluster, namespace: str, runs: int, directory: Path, progress: Callable[[int], None]
) -> list[float]:
    """Create TrainJobs of Kubeflow one after another; return the milliseconds from each creation to its Job."""
    api = Api(cluster.kubeconfig, namespace)
    with kubeflow.running(cluster, api, directory) as contender:
        return measure_contender(cluster, api, contender, runs, progress)


def measure_contender(
    cluster: Cluster, api: Api, contender: Contender, runs: int, progress: Callable[[int], None]
) -> list[float]:
    """Create resources one after another; all times come from the API server's audit log."""
    names = [f"job-{number}" for number in range(runs)]
    done: dict[str, datetime] = {}
    group, version, plural = contender.kind

    def note_done(resource: Object) -> None:
        if contender.is_done(resource):
            done.setdefault(resource["metadata"]["name"], datetime.now())

    with ThreadPoolExecutor(1) as pool:
        watches = [
            follow(api.core.list_namespaced_pod, [api.namespace], lambda pod: pool.submit(end_pod, api, pod)),
            follow(api.custom.list_namespaced_custom_object, [group, version, api.namespace, plural], note_done),
        ]
        try:
            for number, name in enumerate([WARM_UP, *names]):
                time.sleep(PAUSE_SECONDS)
                contender.create(name)
                until(f"{name} has ended", lambda name=name: name in done)  # type: ignore[misc]
                progress(number)
        finally:
            for is_over in watches:
                is_over.set()
    log = audit.read(cluster.state_dir / "logs" / "audit.log", api.namespace)
    first_jobs = find_first_jobs(log, contender)
    return [
        (first_jobs[name] - audit.first(log, "create", plural, name).received).total_seconds() * 1000 for name in names
    ]
