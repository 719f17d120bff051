"""Read how a Deployment replaces its pods. Pure."""

from collections.abc import Sequence

from finetune_api.reasons import Reason
from finetune_operator.kube.kinds import Object
from finetune_operator.kube.workloads import refer_to
from finetune_operator.resources.workloads.base import (
    count_pods,
    count_replicas,
    count_updated,
    has_controller,
    sort_by_name,
)

GETS_AGENT = True
sort_pods = sort_by_name


def owns(name: str, pod: Object) -> bool:
    """Return whether the pod's ReplicaSet has the name that the Deployment gives it."""
    template = (pod["metadata"].get("labels") or {}).get("pod-template-hash")
    return has_controller(pod, "ReplicaSet", f"{name}-{template}")


def replaces_pods(workload: Object) -> bool:
    """Return whether the Deployment has pods of an older template, or no pods."""
    return count_pods(workload) == 0 or count_updated(workload) < count_pods(workload)


def is_up_to_date(workload: Object) -> bool:
    """Return whether all pods are of the newest template."""
    return count_updated(workload) == count_pods(workload)


def find_blocker(workload: Object, pods: Sequence[Object]) -> tuple[Reason, str] | None:
    """Return reason and message if the Deployment is paused before all of its pods have the agent."""
    is_complete = is_up_to_date(workload) and count_replicas(workload) == len(pods)
    if not workload["spec"].get("paused") or is_complete:
        return None
    ref = refer_to(workload)
    text = f"{ref} is paused, so its pods are not replaced: kubectl rollout resume {ref.kubectl_name}"
    return Reason.TARGET_PAUSED, text
