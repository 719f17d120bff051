"""Measure what finished FineTuneJobs cost an operator that starts: memory, time, writes and CPU.

One job is run to its end, and its objects are copied: the FineTuneJob, its Jobs and their pods, as they stay in a
cluster.
"""

import json
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from bench.operator.process import count_writes, cpu_seconds, memory_mib
from devcluster.cluster import Cluster
from tools.testing.fake_kubelet import Kubelet, good_run
from tools.testing.kubernetes_api import GROUP, PLURAL, VERSION, Api, Object
from tools.testing.operator_process import Operator

THREADS = 8
IDLE_SECONDS = 20.0
NOBODY = "finetune-operator.io/bench"
"""Name of the controller and the scheduler of the copies. Nothing has this name, so the copies stay as they are."""


@dataclass(frozen=True)
class Start:
    """The costs of one start of the operator.

    Attributes:
        jobs: Number of finished FineTuneJobs.
        ready_seconds: Time until the operator is ready.
        memory_mib: Resident memory when it is idle.
        peak_mib: Highest resident memory.
        cpu_seconds: CPU time until it is idle.
        idle_percent: CPU time of the idle operator, in percent of one core.
        writes: Number of writes.
    """

    jobs: int
    ready_seconds: float
    memory_mib: float
    peak_mib: float
    cpu_seconds: float
    idle_percent: float
    writes: int


def measure(cluster: Cluster, namespace: str, jobs: int, directory: Path, progress: Callable[[int], None]) -> Start:
    """Copy a finished job, and start an operator among the copies; ``progress`` receives the number of jobs."""
    api = Api(cluster.kubeconfig, namespace)
    operator = Operator(cluster.kubeconfig, namespace, directory / "operator.log").start()
    try:
        api.create_job("job-0")
        with Kubelet(api, "job-0", good_run):
            api.await_condition("job-0", "Ready", "True")
    finally:
        operator.stop()
    template = Template(api.finetune_job("job-0"), api.jobs("job-0"), api.pods())
    with ThreadPoolExecutor(THREADS) as pool:
        for number, _ in enumerate(pool.map(lambda number: template.copy(api, f"job-{number}"), range(1, jobs)), 2):
            progress(number)
    return start(operator, jobs)


@dataclass(frozen=True)
class Template:
    """The objects of a finished job."""

    job: Object
    children: list[Object]
    pods: list[Object]

    def copy(self, api: Api, name: str) -> None:
        """Create the same objects for another FineTuneJob."""
        old = self.job["metadata"]
        renamed = _rename(self.job, old["name"], name, {})
        created = api.custom.create_namespaced_custom_object(GROUP, VERSION, api.namespace, PLURAL, renamed)
        api.custom.patch_namespaced_custom_object_status(
            GROUP, VERSION, api.namespace, PLURAL, name, {"status": renamed["status"]}
        )
        uids = {old["uid"]: created["metadata"]["uid"]}
        for child in self.children:
            body = _rename(child, old["name"], name, uids)
            body["spec"] |= {"managedBy": NOBODY, "manualSelector": True}
            job = api.batch.create_namespaced_job(api.namespace, body)
            uids[child["metadata"]["uid"]] = job.metadata.uid
            api.batch.patch_namespaced_job_status(body["metadata"]["name"], api.namespace, {"status": body["status"]})
        for pod in self.pods:
            body = _rename(pod, old["name"], name, uids)
            body["spec"] |= {"schedulerName": NOBODY}
            api.core.create_namespaced_pod(api.namespace, body)
            api.core.patch_namespaced_pod_status(body["metadata"]["name"], api.namespace, {"status": body["status"]})


def start(operator: Operator, jobs: int) -> Start:
    """Start the operator, and measure it until it is ready and then idle."""
    began = time.monotonic()
    operator.start()
    ready = time.monotonic() - began
    time.sleep(IDLE_SECONDS / 2)
    before = cpu_seconds(operator)
    time.sleep(IDLE_SECONDS)
    idle = (cpu_seconds(operator) - before) / IDLE_SECONDS * 100
    try:
        return Start(
            jobs=jobs,
            ready_seconds=ready,
            memory_mib=memory_mib(operator),
            peak_mib=memory_mib(operator, "VmHWM"),
            cpu_seconds=before,
            idle_percent=idle,
            writes=count_writes(operator),
        )
    finally:
        operator.stop()


def _rename(item: Object, old: str, new: str, uids: dict[str, str]) -> Object:
    """Return an object with another name and other uids, without the fields that a server sets."""
    text = json.dumps(item).replace(f'"{old}', f'"{new}').replace(f"{old}-", f"{new}-").replace(f"/{old}/", f"/{new}/")
    for before, after in uids.items():
        text = text.replace(before, after)
    body: Object = json.loads(text)
    for field in ("uid", "resourceVersion", "creationTimestamp", "managedFields", "generation", "selfLink"):
        body["metadata"].pop(field, None)
    return body
