"""Create many FineTuneJobs at once, and measure how soon all of them have begun and have ended.

Fake nodes run the pods, and each pod succeeds as soon as it runs.
"""

import json
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from kubernetes.watch.watch import iter_resp_lines

from bench.operator import audit
from bench.operator.process import count_writes, cpu_seconds, memory_mib
from bench.operator.scenario import EXIT_CODE, MESSAGE
from devcluster.cluster import Cluster
from tools.testing.fake_kubelet import good_run
from tools.testing.kubernetes_api import GROUP, PLURAL, VERSION, Api, Object
from tools.testing.operator_process import Operator
from tools.testing.waiting import wait_for

THREADS = 8
LONGEST_SECONDS_PER_JOB = 3.0
WARM_UP = "warm-up"


@dataclass(frozen=True)
class AtOnce:
    """Results of FineTuneJobs that were created at once. Times are in seconds since the first was sent.

    Attributes:
        jobs: Number of FineTuneJobs.
        accepted_seconds: Time at which the API server had accepted the last one.
        begun_seconds: Time at which the last one had its first Job.
        done_seconds: Time at which the last one was Ready.
        done_when_all_had_begun: Number that were Ready when the last one got its first Job.
        preflights: Number of preflights that ran.
        cpu_seconds: CPU time of the operator.
        peak_mib: Its highest resident memory.
        writes_per_job: Its writes, events included.
    """

    jobs: int
    accepted_seconds: float
    begun_seconds: float
    done_seconds: float
    done_when_all_had_begun: int
    preflights: int
    cpu_seconds: float
    peak_mib: float
    writes_per_job: float


def measure(
    cluster: Cluster, namespace: str, jobs: int, directory: Path, progress: Callable[[int], None], reuse: bool = False
) -> AtOnce:
    """Create the FineTuneJobs, wait until all are Ready, and return what that took.

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
    names = [f"job-{number}" for number in range(jobs)]
    ready: dict[str, datetime] = {}

    def note_ready(finetune_job: Object) -> None:
        conditions = finetune_job.get("status", {}).get("conditions", [])
        if any(item["type"] == "Ready" and item["status"] == "True" for item in conditions):
            ready.setdefault(finetune_job["metadata"]["name"], datetime.now(UTC))
            progress(len(ready.keys() & set(names)))

    try:
        with ThreadPoolExecutor(THREADS) as pool:
            follow(api.core.list_namespaced_pod, [namespace], lambda pod: pool.submit(end_pod, api, pod))
            follow(api.custom.list_namespaced_custom_object, [GROUP, VERSION, namespace, PLURAL], note_ready)
            api.create_job(WARM_UP)
            wait_for(lambda: WARM_UP in ready, 60, "the first job")
            cpu, writes = cpu_seconds(operator), count_writes(operator)
            list(pool.map(api.create_job, names))
            wait_for(lambda: len(ready) > jobs, 60 + LONGEST_SECONDS_PER_JOB * jobs, "all jobs")
            cpu, writes = cpu_seconds(operator) - cpu, count_writes(operator) - writes
            peak = memory_mib(operator, "VmHWM")
    finally:
        operator.stop()
    log = [write for write in audit.read(cluster.state_dir / "logs" / "audit.log", namespace) if write.name != WARM_UP]
    created = [write for write in log if (write.verb, write.resource) == ("create", PLURAL)]
    first_jobs = find_first_jobs(log, names)
    begin, last_begun = min(write.received for write in created), max(first_jobs)

    def since(moment: datetime) -> float:
        return (moment - begin).total_seconds()

    return AtOnce(
        jobs=jobs,
        accepted_seconds=since(max(write.answered for write in created)),
        begun_seconds=since(last_begun),
        done_seconds=since(max(ready[name] for name in names)),
        done_when_all_had_begun=sum(ready[name] <= last_begun for name in names),
        preflights=sum(write.resource == "jobs" and write.name.endswith("-preflight") for write in created_jobs(log)),
        cpu_seconds=cpu,
        peak_mib=peak,
        writes_per_job=writes / jobs,
    )


def created_jobs(log: list[audit.Write]) -> list[audit.Write]:
    """Return the creations of Jobs, those of the warm-up left out."""
    return [
        write
        for write in log
        if (write.verb, write.resource) == ("create", "jobs") and not write.name.startswith(WARM_UP)
    ]


def find_first_jobs(log: list[audit.Write], names: list[str]) -> list[datetime]:
    """Return when the first Job of each FineTuneJob was created. Raises KeyError if one has none."""
    first: dict[str, datetime] = {}
    for write in created_jobs(log):
        first.setdefault(write.name.removesuffix("-preflight").removesuffix("-train-1"), write.answered)
    return [first[name] for name in names]


def end_pod(api: Api, pod: Object) -> None:
    """Let kwok end a running pod successfully."""
    meta = pod["metadata"]
    if pod["status"].get("phase") != "Running" or EXIT_CODE in meta.get("annotations", {}):
        return
    _, message = good_run(meta["labels"]["batch.kubernetes.io/job-name"])
    patch = {"metadata": {"annotations": {EXIT_CODE: "0", MESSAGE: json.dumps(message)}}}
    api.core.patch_namespaced_pod(meta["name"], api.namespace, patch, _preload_content=False)


def follow(list_objects: Callable[..., Any], path: Sequence[str], take: Callable[[Object], Any]) -> None:
    """Start a thread that passes every state of some objects to a function, until the process ends.

    Args:
        list_objects: A method of the client that lists them.
        path: Its arguments.
        take: Receives each object.
    """

    def run() -> None:
        for line in iter_resp_lines(list_objects(*path, watch=True, _preload_content=False)):
            take(json.loads(line)["object"])

    threading.Thread(target=run, daemon=True).start()
