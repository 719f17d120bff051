"""Read what the operator's process uses, from /proc, and what it has written, from its metrics."""

from bench import process
from tools.testing.operator_process import Operator


def cpu_seconds(operator: Operator) -> float:
    """Return the CPU seconds that the process has used."""
    return process.cpu_seconds(_pid(operator))


def memory_mib(operator: Operator, field: str = "VmRSS") -> float:
    """Return the resident memory of the process in MiB: ``VmRSS`` now, ``VmHWM`` at its peak."""
    return process.memory_mib(_pid(operator), field)


def count_writes(operator: Operator) -> int:
    """Return how many writes the operator has sent."""
    name = "finetune_operator_kube_requests_total"
    return int(sum(operator.metric(name, verb=verb) for verb in ("create", "apply", "patch", "patch_status", "delete")))


def _pid(operator: Operator) -> int:
    assert operator.process is not None
    return operator.process.pid
