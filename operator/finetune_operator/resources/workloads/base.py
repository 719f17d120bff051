"""Define what the operator asks of each kind of workload, and what all of them share. Pure."""

from collections.abc import Sequence
from typing import Protocol

from finetune_api.reasons import Reason
from finetune_operator.kube.kinds import Object


class Rules(Protocol):
    """How workloads of one kind own and replace their pods. Each function is pure."""

    GETS_AGENT: bool
    """Whether the operator adds the agent to the pods; otherwise their owner does."""

    def owns(self, name: str, pod: Object) -> bool:
        """Return whether the pod belongs to the workload of this name."""

    def sort_pods(self, pods: Sequence[Object]) -> list[Object]:
        """Sort pods by the turn in which they take a version."""

    def replaces_pods(self, workload: Object) -> bool:
        """Return whether Kubernetes replaces every pod that it may replace, or the workload has none."""

    def is_up_to_date(self, workload: Object) -> bool:
        """Return whether Kubernetes replaces no pod by one of the newest template."""

    def find_blocker(self, workload: Object, pods: Sequence[Object]) -> tuple[Reason, str] | None:
        """Find what keeps pods without the agent, as a reason and a message; None if Kubernetes replaces them.

        ``pods`` are those with the agent.
        """


def count_replicas(workload: Object) -> int:
    """Return how many pods the workload is to have."""
    return int(workload["spec"].get("replicas", 1))


def count_updated(workload: Object) -> int:
    """Return how many pods are of the newest template."""
    return int((workload.get("status") or {}).get("updatedReplicas", 0))


def count_pods(workload: Object) -> int:
    """Return how many pods the workload has."""
    return int((workload.get("status") or {}).get("replicas", 0))


def is_observed(workload: Object) -> bool:
    """Return whether the workload's status is of its current spec."""
    observed = (workload.get("status") or {}).get("observedGeneration", 0)
    return int(observed) >= int(workload["metadata"].get("generation", 0))


def sort_by_name(pods: Sequence[Object]) -> list[Object]:
    """Sort pods by name."""
    return sorted(pods, key=lambda pod: str(pod["metadata"]["name"]))


def has_controller(pod: Object, kind: str, name: str) -> bool:
    """Return whether this object controls the pod."""
    owners = [owner for owner in pod["metadata"].get("ownerReferences") or [] if owner.get("controller")]
    return any((owner["kind"], owner["name"]) == (kind, name) for owner in owners)
