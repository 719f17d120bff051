"""Name the workloads that AdapterDeployments target, and the serving group of each. Pure."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError

from finetune_api.core_v1.selectors import LabelSelector
from finetune_api.label_selector import format_selector
from finetune_operator.kube.kinds import DEPLOYMENT, POD, STATEFUL_SET, Kind, Object

FIELDS = {"deploymentRef": DEPLOYMENT, "statefulSetRef": STATEFUL_SET, "selector": POD}
"""Fields of spec.target that name a workload, with its kind."""
PREFIXES = {"statefulset": STATEFUL_SET, "pods": POD}
"""Beginnings of the names of groups, up to the first slash; the name of a Deployment's group has none."""


@dataclass(frozen=True)
class WorkloadRef:
    """A workload whose pods serve adapters, or pods that only a selector names."""

    kind: Kind
    name: str
    """Its name; of pods the selector in kubectl's notation."""

    def __str__(self) -> str:
        """Return its kind and name, for messages."""
        return f"the pods with {self.name}" if self.kind is POD else f"{self.kind.name} {self.name!r}"

    @property
    def kubectl_name(self) -> str:
        """Return how kubectl names it: ``statefulset/web``."""
        return f"{self.kind.name.lower()}/{self.name}"

    @property
    def group(self) -> str:
        """Return the name of its serving group: a Deployment's own name, else with a prefix."""
        prefix = next((f"{prefix}/" for prefix, kind in PREFIXES.items() if kind is self.kind), "")
        return f"{prefix}{self.name}"

    @property
    def field(self) -> str:
        """Return the field of an AdapterDeployment that names it."""
        return next(f"spec.target.{field}" for field, kind in FIELDS.items() if kind is self.kind)


def find_workload(target: Mapping[str, Any]) -> WorkloadRef | None:
    """Find the workload that the spec.target of an AdapterDeployment names; None if none is known."""
    for field, kind in FIELDS.items():
        if value := target.get(field):
            name = _format(value) if kind is POD else value.get("name")
            return WorkloadRef(kind, name) if name else None
    return None


def _format(selector: Any) -> str:
    try:
        return format_selector(LabelSelector.model_validate(selector))
    except ValidationError:
        return ""


def read_group(group: str) -> WorkloadRef:
    """Read from the name of a serving group which workload it belongs to."""
    prefix, slash, name = group.partition("/")
    return WorkloadRef(PREFIXES[prefix], name) if slash and prefix in PREFIXES else WorkloadRef(DEPLOYMENT, group)


def refer_to(workload: Object) -> WorkloadRef:
    """Return the kind and name of a live workload."""
    kind = next(known for known in FIELDS.values() if known.name == workload["kind"])
    return WorkloadRef(kind, workload["metadata"]["name"])
