"""Create many FineTuneJobs, or TrainJobs of Kubeflow, at once, and measure how soon all have begun and have ended.

Fake nodes run the pods, and each pod succeeds as soon as it runs.
"""

import json
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from kubernetes.watch.watch import iter_resp_lines
from urllib3.exceptions import HTTPError

from bench.operator import audit, kubeflow
from bench.operator.contender import Contender, make_contender
from bench.operator.scenario import EXIT_CODE, MESSAGE
from bench.process import cpu_seconds
from devcluster import processes
from devcluster.cluster import Cluster
from tools.testing.fake_kubelet import good_run
from tools.testing.kubernetes_api import Api, Object
from tools.testing.operator_process import Operator
from tools.testing.waiting import wait_for

THREADS = 8
LONGEST_SECONDS_PER_JOB = 3.0
WARM_UP = "warm-up"


@dataclass(frozen=True)
class AtOnce:
    """Results of resources that were created at once. Times are in seconds since the first was sent.

    Attributes:
        jobs: Number of resources.
        accepted_seconds: Time at which the API server had accepted the last one.
        begun_seconds: Time at which the last one had its first Job.
        done_seconds: Time at which the last one had ended.
        done_when_all_had_begun: Number that had ended when the last one got its first Job.
        batch_jobs: Number of Jobs that ran.
        cpu_seconds: CPU time of the operator's processes.
        api_server_cpu_seconds: CPU time of the API server.
        peak_mib: Highest resident memory of the operator's processes.
        writes_per_job: The operator's writes, events and refused ones included.
    """

    jobs: int
    accepted_seconds: float
    begun_seconds: float
    done_seconds: float
    done_when_all_had_begun: int
    batch_jobs: int
    cpu_seconds: float
    api_server_cpu_seconds: float
    peak_mib: float
    writes_per_job: float


def measure(
    cluster: Cluster, namespace: str, jobs: int, directory: Path, progress: Callable[[int], None], reuse: bool = False
) -> AtOnce:
    """Create FineTuneJobs, wait until all are Ready, and return what that took.

    Args:
        cluster: A cluster with fake nodes.
        namespace: The namespace of the FineTuneJobs.
        jobs: Number of FineTuneJobs.
        directory: Receives the operator's log.
        progress: Receives the number that are Ready.
        reuse: Whether they share one preflight.
    """
    api = Api(cluster.kubeconfig, namespace)
    settings = {"FINETUNE_OPERATOR_PREFLIGHT_REUSE_SECONDS": "3600" if reuse else "0"}
    operator = Operator(cluster.kubeconfig, namespace, directory / "operator.log", settings).start()
    try:
        return measure_contender(cluster, api, make_contender(api, operator), jobs, progress)
    finally:
        operator.stop()


def measure_kubeflow(
    cluster: Cluster, namespace: str, jobs: int, directory: Path, progress: Callable[[int], None]
) -> AtOnce:
    """Create TrainJobs of Kubeflow, wait until all are Complete, and return what that took."""
    api = Api(cluster.kubeconfig, namespace)
    with kubeflow.running(cluster, api, directory) as contender:
        return measure_contender(cluster, api, contender, jobs, progress)


def measure_contender(
    cluster: Cluster, api: Api, contender: Contender, jobs: int, progress: Callable[[int], None]
) -> AtOnce:
    """Create resources, wait until all have ended, and return what that took."""
    names = [f"job-{number}" for number in range(jobs)]
    done: dict[str, datetime] = {}
    group, version, plural = contender.kind
    api_server = processes.pid_of(cluster.state_dir, "kube-apiserver")
    assert api_server is not None

    def note_done(resource: Object) -> None:
        if contender.is_done(resource):
            done.setdefault(resource["metadata"]["name"], datetime.now(UTC))
            progress(len(done.keys() & set(names)))

    with ThreadPoolExecutor(THREADS) as pool:
        watches = [
            follow(api.core.list_namespaced_pod, [api.namespace], lambda pod: pool.submit(end_pod, api, pod)),
            follow(api.custom.list_namespaced_custom_object, [group, version, api.namespace, plural], note_done),
        ]
        try:
            contender.create(WARM_UP)
            wait_for(lambda: WARM_UP in done, 60, "the first job")
            cpu, api_server_cpu = contender.cpu_seconds(), cpu_seconds(api_server)
            list(pool.map(contender.create, names))
            wait_for(lambda: len(done) > jobs, 60 + LONGEST_SECONDS_PER_JOB * jobs, "all jobs")
            cpu, api_server_cpu = contender.cpu_seconds() - cpu, cpu_seconds(api_server) - api_server_cpu
            peak = contender.memory_mib("VmHWM")
        finally:
            for is_over in watches:
                is_over.set()
    everything = audit.read_all(cluster.state_dir / "logs" / "audit.log", api.namespace)
    log = [write for write in everything if write.code < 300 and not write.name.startswith(WARM_UP)]
    created = [write for write in log if (write.verb, write.resource) == ("create", plural)]
    batch_jobs = [write for write in log if (write.verb, write.resource) == ("create", "jobs")]
    first_jobs = find_first_jobs(log, contender)
    begin, last_begun = min(write.received for write in created), max(first_jobs[name] for name in names)

    def since(moment: datetime) -> float:
        return (moment - begin).total_seconds()

    return AtOnce(
        jobs=jobs,
        accepted_seconds=since(max(write.answered for write in created)),
        begun_seconds=since(last_begun),
        done_seconds=since(max(done[name] for name in names)),
        done_when_all_had_begun=sum(done[name] <= last_begun for name in names),
        batch_jobs=len(batch_jobs),
        cpu_seconds=cpu,
        api_server_cpu_seconds=api_server_cpu,
        peak_mib=peak,
        writes_per_job=sum(write.agent.startswith(contender.agents) for write in everything) / jobs,
    )


def find_first_jobs(log: Sequence[audit.Write], contender: Contender) -> dict[str, datetime]:
    """Return when the first Job of each resource was created."""
    first: dict[str, datetime] = {}
    for write in log:
        if (write.verb, write.resource) == ("create", "jobs"):
            first.setdefault(contender.find_resource(write.name), write.answered)
    return first


def end_pod(api: Api, pod: Object) -> None:
    """Let kwok end a running pod successfully."""
    meta = pod["metadata"]
    if pod["status"].get("phase") != "Running" or EXIT_CODE in meta.get("annotations", {}):
        return
    _, message = good_run(meta["labels"]["batch.kubernetes.io/job-name"])
    patch = {"metadata": {"annotations": {EXIT_CODE: "0", MESSAGE: json.dumps(message)}}}
    api.core.patch_namespaced_pod(meta["name"], api.namespace, patch, _preload_content=False)


def follow(list_objects: Callable[..., Any], path: Sequence[str], take: Callable[[Object], Any]) -> threading.Event:
    """Start a thread that passes every state of some objects to a function; return an event that ends this when set.

    It also ends when the API server does.

    Args:
        list_objects: A method of the client that lists them.
        path: Its arguments.
        take: Receives each object.
    """
    is_over = threading.Event()

    def run() -> None:
        with suppress(HTTPError):
            for line in iter_resp_lines(list_objects(*path, watch=True, _preload_content=False)):
                if is_over.is_set():
                    return
                take(json.loads(line)["object"])

    threading.Thread(target=run, daemon=True).start()
    return is_over
