"""What is compared: an operator that runs a resource as Jobs, and how to use and measure it."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from bench import process
from tools.testing.kubernetes_api import GROUP, PLURAL, VERSION, Api, Object
from tools.testing.operator_process import Operator


@dataclass(frozen=True)
class Contender:
    """An operator that runs.

    Attributes:
        kind: Group, version and plural of its resource.
        create: Creates a resource by name.
        is_done: Returns whether a resource has ended well.
        find_resource: Returns the name of the resource that a Job, by name, belongs to.
        agents: Beginnings of the user agents of its processes.
        pids: Its processes.
    """

    kind: tuple[str, str, str]
    create: Callable[[str], Any]
    is_done: Callable[[Object], bool]
    find_resource: Callable[[str], str]
    agents: tuple[str, ...]
    pids: Sequence[int]

    def cpu_seconds(self) -> float:
        """Return the CPU seconds that its processes have used."""
        return sum(process.cpu_seconds(pid) for pid in self.pids)

    def memory_mib(self, field: str = "VmRSS") -> float:
        """Return the resident memory of its processes in MiB: ``VmRSS`` now, ``VmHWM`` at its peak."""
        return sum(process.memory_mib(pid, field) for pid in self.pids)


def has_condition(resource: Object, kind: str) -> bool:
    """Return whether a condition of the resource is true."""
    conditions = resource.get("status", {}).get("conditions", [])
    return any((item["type"], item["status"]) == (kind, "True") for item in conditions)


def make_contender(api: Api, operator: Operator) -> Contender:
    """Return this project's operator, which is running, as a contender."""
    assert operator.process is not None
    return Contender(
        kind=(GROUP, VERSION, PLURAL),
        create=api.create_job,
        is_done=lambda resource: has_condition(resource, "Ready"),
        find_resource=lambda job: job.removesuffix("-preflight").removesuffix("-train-1"),
        agents=("finetune-operator",),
        pids=[operator.process.pid],
    )
