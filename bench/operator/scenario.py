"""FineTuneJobs one after another from creation to Ready on fake nodes, with pauses in which the operator is idle."""

import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from bench.operator import audit
from devcluster.cluster import Cluster
from tools.testing.kubernetes_api import Api
from tools.testing.operator_messages import PREFLIGHT_PASSED, SUCCEEDED
from tools.testing.operator_process import Operator
from tools.testing.waiting import until

PAUSE_SECONDS = 0.3
EXIT_CODE = "devcluster.finetune-operator.io/exit-code"
MESSAGE = "devcluster.finetune-operator.io/termination-message"


@dataclass(frozen=True)
class Measured:
    """Milliseconds of each run, and what the operator wrote in all of them."""

    to_preflight: list[float]
    to_trainer: list[float]
    writes: dict[str, int]
    counted_by_operator: int
    """The same number of writes, by the operator's own metrics."""
    memory_mib: float
    cpu_ms_per_job: float


def measure(cluster: Cluster, namespace: str, runs: int, directory: Path, progress: Callable[[int], None]) -> Measured:
    """Run it; everything is timed by the API server's clock (its audit log), nothing by ours."""
    api = Api(cluster.kubeconfig, namespace)
    operator = Operator(cluster.kubeconfig, namespace, directory / "operator.log").start()
    try:
        _one(api, "warm-up")
        before = _written(operator)
        cpu_before = _cpu_seconds(operator)
        names = [f"job-{number}" for number in range(runs)]
        for number, name in enumerate(names):
            _one(api, name)
            progress(number + 1)
        counted = _written(operator) - before
        cpu = (_cpu_seconds(operator) - cpu_before) / runs * 1000
        memory = _memory_mib(operator)
    finally:
        operator.stop()
    log = audit.read(cluster.state_dir / "logs" / "audit.log", namespace)
    ours = [write for write in audit.of_operator(log) if not write.name.startswith("warm-up")]
    return Measured(
        [_to_preflight(log, name) for name in names],
        [_to_trainer(log, name) for name in names],
        audit.counts(ours),
        counted,
        memory,
        cpu,
    )


def _one(api: Api, name: str) -> None:
    """One FineTuneJob from creation to Ready; before each thing that is timed the operator has nothing to do."""
    time.sleep(PAUSE_SECONDS)
    api.create_job(name)
    _end(api, f"{name}-preflight", PREFLIGHT_PASSED)
    _end(api, f"{name}-train-1", SUCCEEDED)
    api.await_condition(name, "Ready", "True")
    until("the event", lambda: [event for event in api.events() if event["regarding"]["name"] == name])


def _end(api: Api, job: str, said: dict[str, object]) -> None:
    """The Job's pod runs for a moment, then ends well."""
    pod = until(
        f"{job} runs", lambda: next((pod for pod in api.pods(job) if pod["status"]["phase"] == "Running"), None)
    )
    time.sleep(PAUSE_SECONDS)
    patch = {"metadata": {"annotations": {EXIT_CODE: "0", MESSAGE: json.dumps(said)}}}
    api.core.patch_namespaced_pod(pod["metadata"]["name"], api.namespace, patch)


def _to_preflight(log: list[audit.Write], name: str) -> float:
    """From the moment when the API server gets the FineTuneJob to the moment when it has the preflight's Job."""
    asked = audit.first(log, "create", "finetunejobs", name)
    made = audit.first(log, "create", "jobs", f"{name}-preflight")
    return (made.answered - asked.received).total_seconds() * 1000


def _to_trainer(log: list[audit.Write], name: str) -> float:
    """Return the milliseconds from the write that ends the preflight's pod to the trainer's Job in the API server."""
    made = audit.first(log, "create", "jobs", f"{name}-train-1")
    ended = [
        write
        for write in log
        if write.resource == "pods/status"
        and write.name.startswith(f"{name}-preflight-")
        and write.received < made.received
        if "kwok" in write.agent
    ]
    return (made.answered - ended[-1].received).total_seconds() * 1000


def _written(operator: Operator) -> int:
    name = "finetune_operator_kube_requests_total"
    return int(sum(operator.metric(name, verb=verb) for verb in ("create", "apply", "patch", "patch_status", "delete")))


def _cpu_seconds(operator: Operator) -> float:
    assert operator.process is not None
    fields = Path(f"/proc/{operator.process.pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / 100


def _memory_mib(operator: Operator) -> float:
    assert operator.process is not None
    status = Path(f"/proc/{operator.process.pid}/status").read_text()
    (line,) = [line for line in status.splitlines() if line.startswith("VmRSS")]
    return int(line.split()[1]) / 1024
