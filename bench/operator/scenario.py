"""Run FineTuneJobs one after another on fake nodes, with pauses that let the operator become idle."""

import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from bench.operator import audit
from bench.operator.process import count_writes, cpu_seconds, memory_mib
from devcluster.cluster import Cluster
from tools.testing.kubernetes_api import Api
from tools.testing.operator_messages import PREFLIGHT_PASSED, SUCCEEDED
from tools.testing.operator_process import Operator
from tools.testing.waiting import until

PAUSE_SECONDS = 0.3
EXIT_CODE = "devcluster.finetune-operator.io/exit-code"
MESSAGE = "devcluster.finetune-operator.io/termination-message"


@dataclass(frozen=True)
class Measurements:
    """The milliseconds of each run, and the operator's writes in all runs."""

    to_preflight: list[float]
    to_trainer: list[float]
    writes: dict[str, int]
    counted_by_operator: int
    """The number of writes according to the operator's own metrics."""
    memory_mib: float
    cpu_ms_per_job: float


def measure(
    cluster: Cluster, namespace: str, runs: int, directory: Path, progress: Callable[[int], None]
) -> Measurements:
    """Run the FineTuneJobs. All times come from the API server's audit log, so from one clock."""
    api = Api(cluster.kubeconfig, namespace)
    operator = Operator(cluster.kubeconfig, namespace, directory / "operator.log").start()
    try:
        _run_job(api, "warm-up")
        before = count_writes(operator)
        cpu_before = cpu_seconds(operator)
        names = [f"job-{number}" for number in range(runs)]
        for number, name in enumerate(names):
            _run_job(api, name)
            progress(number + 1)
        counted_writes = count_writes(operator) - before
        cpu = (cpu_seconds(operator) - cpu_before) / runs * 1000
        memory = memory_mib(operator)
    finally:
        operator.stop()
    log = audit.read(cluster.state_dir / "logs" / "audit.log", namespace)
    operator_writes = [write for write in audit.of_operator(log) if not write.name.startswith("warm-up")]
    return Measurements(
        [_time_to_preflight(log, name) for name in names],
        [_time_to_trainer(log, name) for name in names],
        audit.counts(operator_writes),
        counted_writes,
        memory,
        cpu,
    )


def _run_job(api: Api, name: str) -> None:
    """Run one FineTuneJob until it is Ready. The operator is idle before each event that is timed."""
    time.sleep(PAUSE_SECONDS)
    api.create_job(name)
    _end_pod(api, f"{name}-preflight", PREFLIGHT_PASSED)
    _end_pod(api, f"{name}-train-1", SUCCEEDED)
    api.await_condition(name, "Ready", "True")
    until("the event", lambda: [event for event in api.events() if event["regarding"]["name"] == name])


def _end_pod(api: Api, job: str, message: dict[str, object]) -> None:
    """Let the pod of a Job run for a moment, then end it with exit code 0 and a message."""
    pod = until(
        f"{job} runs", lambda: next((pod for pod in api.pods(job) if pod["status"]["phase"] == "Running"), None)
    )
    time.sleep(PAUSE_SECONDS)
    patch = {"metadata": {"annotations": {EXIT_CODE: "0", MESSAGE: json.dumps(message)}}}
    api.core.patch_namespaced_pod(pod["metadata"]["name"], api.namespace, patch)


def _time_to_preflight(log: list[audit.Write], name: str) -> float:
    """Return the milliseconds from the creation of the FineTuneJob to that of the preflight's Job."""
    job_creation = audit.first(log, "create", "finetunejobs", name)
    preflight_creation = audit.first(log, "create", "jobs", f"{name}-preflight")
    return (preflight_creation.answered - job_creation.received).total_seconds() * 1000


def _time_to_trainer(log: list[audit.Write], name: str) -> float:
    """Return the milliseconds from the end of the preflight's pod to the creation of the trainer's Job."""
    trainer_creation = audit.first(log, "create", "jobs", f"{name}-train-1")
    pod_endings = [
        write
        for write in log
        if write.resource == "pods/status"
        and write.name.startswith(f"{name}-preflight-")
        and write.received < trainer_creation.received
        if "kwok" in write.agent
    ]
    return (trainer_creation.answered - pod_endings[-1].received).total_seconds() * 1000
