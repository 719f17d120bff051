"""Use one namespace of a real cluster as its users do, and explain a wait that fails."""

import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any, TypeVar

import yaml

from devcluster.cluster import Cluster
from devcluster.errors import DevClusterError
from tools.testing.reader import Reader

Object = dict[str, Any]
T = TypeVar("T")
SYSTEM_NAMESPACE = "finetune-system"
TAIL = "--tail=40"
GPU = "nvidia.com/gpu"


@dataclass(frozen=True)
class Namespace:
    """A namespace: written to with kubectl, as users do, and read over one connection."""

    cluster: Cluster
    name: str

    def kubectl(self, *arguments: str, stdin: str | None = None) -> str:
        """Run kubectl and return its output. Raises DevClusterError with its error output."""
        return self.cluster.kubectl(arguments[0], f"--namespace={self.name}", *arguments[1:], stdin=stdin)

    def apply(self, *objects: Object) -> None:
        """Apply objects with kubectl."""
        self.kubectl("apply", "--filename=-", stdin=yaml.safe_dump_all(objects))

    @cached_property
    def _reader(self) -> Reader:
        return Reader(self.cluster.kubeconfig, self.name)

    def evict(self, pod: str) -> None:
        """Evict a pod, as kubectl drain does."""
        body = {"apiVersion": "policy/v1", "kind": "Eviction", "metadata": {"name": pod, "namespace": self.name}}
        path = f"/api/v1/namespaces/{self.name}/pods/{pod}/eviction"
        self.kubectl("create", f"--raw={path}", "--filename=-", stdin=json.dumps(body))

    def find(self, kind: str, name: str) -> Object | None:
        """Return an object, or None where there is none."""
        return self._reader.find(kind, name)

    def get(self, kind: str, name: str) -> Object:
        """Return an object that must exist."""
        return self._reader.get(kind, name)

    def all(self, kind: str, selector: str = "") -> list[Object]:
        """Return the objects of a kind, by labels."""
        return self._reader.list(kind, selector)

    def pods_of(self, job: str) -> list[Object]:
        """Return the existing pods of a FineTuneJob."""
        return self.all("pods", f"finetune-operator.io/finetunejob={job}")

    def until(self, title: str, read: Callable[[], T | None], within: float, pause: float = 0.5) -> T:
        """Ask until there is an answer; fail at the deadline with the state, events and logs that explain it."""
        deadline = time.monotonic() + within
        while True:
            answer = read()
            if answer:
                return answer
            if time.monotonic() > deadline:
                raise AssertionError(f"not within {within:.0f} s: {title}\n\n{self.diagnosis()}")
            time.sleep(pause)

    def await_condition(self, kind: str, name: str, type_: str, status: str, within: float) -> Object:
        """Wait for a condition of the present generation, and return the object; fail at once where it is Stalled."""

        def ask() -> Object | None:
            resource = self.get(kind, name)
            if condition(resource, type_)["status"] == status and is_current(resource):
                return resource
            stalled = condition(resource, "Stalled")
            assert not (stalled["status"] == "True" and is_current(resource)), (
                f"{kind} {name}: {stalled['reason']}: {stalled['message']}\n\n{self.diagnosis()}"
            )
            return None

        return self.until(f"{kind} {name}: {type_}={status}", ask, within)

    def diagnosis(self) -> str:
        """Return state, events and logs of the namespace and of the operator."""
        parts = [
            self._part("get", "jobs,pods,deployments", "--output=wide"),
            self._part("describe", "ftj"),
            self._part("describe", "adp"),
            self._part("get", "events", "--sort-by=.lastTimestamp", "--output=wide"),
        ]
        for pod in self.all("pods"):
            name = pod["metadata"]["name"]
            parts.append(self._part("logs", name, "--all-containers", "--prefix", TAIL))
            if any(status.get("restartCount") for status in pod["status"].get("containerStatuses", [])):
                parts.append(self._part("logs", name, "--all-containers", "--prefix", "--previous", TAIL))
        system = Namespace(self.cluster, SYSTEM_NAMESPACE)
        parts.append(system._part("get", "pods", "--output=wide"))
        parts.append(system._part("logs", "deployment/finetune-operator", "--tail=80"))
        return "\n\n".join(parts)

    def _part(self, *arguments: str) -> str:
        title = f"--- kubectl -n {self.name} {' '.join(arguments)}"
        try:
            return f"{title}\n{self.kubectl(*arguments)}"
        except DevClusterError as error:
            return f"{title}\n{error}"


def condition(item: Object, type_: str) -> Object:
    """Return a condition of an object; one of status Unknown where it has none."""
    for condition in item.get("status", {}).get("conditions", []):
        if condition["type"] == type_:
            return dict(condition)
    return {"type": type_, "status": "Unknown", "reason": "", "message": ""}


def conditions(item: Object) -> dict[str, str]:
    """Return the status of each condition of an object."""
    return {condition["type"]: condition["status"] for condition in item.get("status", {}).get("conditions", [])}


def is_current(item: Object) -> bool:
    """Return whether the status is of the present generation."""
    return bool(item.get("status", {}).get("observedGeneration") == item["metadata"]["generation"])


def is_ready(pod: Object) -> bool:
    """Return whether a pod takes traffic."""
    return bool(condition(pod, "Ready")["status"] == "True")


def gpus(pod: Object) -> int:
    """Return how many GPUs a pod requests."""
    containers = [*pod["spec"].get("initContainers", []), *pod["spec"]["containers"]]
    return sum(int(container.get("resources", {}).get("limits", {}).get(GPU, 0)) for container in containers)
