"""Read how a StatefulSet replaces its pods: the highest ordinal first, down to its partition. Pure."""

from collections.abc import Sequence

from finetune_api.reasons import Reason
from finetune_operator.kube.kinds import Object
from finetune_operator.kube.workloads import refer_to
from finetune_operator.resources.workloads.base import count_pods, count_replicas, count_updated, has_controller

GETS_AGENT = True
REVISION_LABEL = "controller-revision-hash"
"""Label of a StatefulSet's pods: the revision of the template from which they were created."""
MAX_NAMED = 10
"""Maximum number of pods that a message names."""


def owns(name: str, pod: Object) -> bool:
    """Return whether the StatefulSet of this name controls the pod."""
    return has_controller(pod, "StatefulSet", name)


def sort_pods(pods: Sequence[Object]) -> list[Object]:
    """Sort pods by their ordinals, the highest first, as Kubernetes replaces them."""
    return sorted(pods, key=_read_ordinal, reverse=True)


def replaces_pods(workload: Object) -> bool:
    """Return whether Kubernetes still replaces pods above the partition, or no pod is up to date."""
    return count_updated(workload) == 0 or not is_up_to_date(workload)


def is_up_to_date(workload: Object) -> bool:
    """Return whether the pods that Kubernetes replaces by itself are of the newest template.

    With OnDelete, and below the partition, it replaces none.
    """
    if _is_on_delete(workload):
        return True
    return count_updated(workload) >= count_pods(workload) - _read_partition(workload)


def find_blocker(workload: Object, pods: Sequence[Object]) -> tuple[Reason, str] | None:
    """Find which pods wait for a person: to be deleted, or for a lower partition."""
    text = _describe_blocker(workload, pods)
    return (Reason.TARGET_PAUSED, text) if text is not None else None


def _describe_blocker(workload: Object, pods: Sequence[Object]) -> str | None:
    ref = refer_to(workload)
    if broken := _find_broken(workload, pods):
        name, reason = broken
        return (
            f"pod {name} of {ref} does not start ({reason}), and Kubernetes never replaces such a pod by one of the "
            f"newer template (podManagementPolicy OrderedReady): kubectl delete pod {name}"
        )
    present = {_read_ordinal(pod) for pod in pods}
    start = int((workload["spec"].get("ordinals") or {}).get("start", 0))
    ordinals = range(start, start + count_replicas(workload))
    missing = [ordinal for ordinal in ordinals if ordinal not in present]
    if _is_on_delete(workload) and missing:
        return (
            f"{ref} has updateStrategy OnDelete, so a pod gets the agent only after it was deleted. Delete one after "
            f"another: kubectl delete pod {_name_pods(ref.name, missing)}"
        )
    partition = _read_partition(workload)
    below_partition = [ordinal for ordinal in missing if ordinal < start + partition]
    if below_partition and below_partition == missing:
        return (
            f"{ref} has updateStrategy.rollingUpdate.partition {partition}, so Kubernetes gives these pods no agent: "
            f"{_name_pods(ref.name, below_partition)}. Lower the partition where the StatefulSet comes from"
        )
    return None


def _is_on_delete(workload: Object) -> bool:
    return (workload["spec"].get("updateStrategy") or {}).get("type") == "OnDelete"


def _read_partition(workload: Object) -> int:
    rolling = (workload["spec"].get("updateStrategy") or {}).get("rollingUpdate") or {}
    return int(rolling.get("partition") or 0)


def _find_broken(workload: Object, pods: Sequence[Object]) -> tuple[str, str] | None:
    """Find a pod of an older template that cannot start, with the reason. Kubernetes waits for it without end.

    See https://github.com/kubernetes/kubernetes/issues/67250.
    """
    newest = (workload.get("status") or {}).get("updateRevision")
    if workload["spec"].get("podManagementPolicy") == "Parallel" or _is_on_delete(workload):
        return None
    for pod in sort_pods(pods):
        revision, reason = (pod["metadata"].get("labels") or {}).get(REVISION_LABEL), _find_fault(pod)
        if revision not in (None, newest) and reason is not None:
            return pod["metadata"]["name"], reason
    return None


def _find_fault(pod: Object) -> str | None:
    """Find why a container of the pod waits, unless it is about to start for the first time."""
    status = pod.get("status") or {}
    for name in ("initContainerStatuses", "containerStatuses"):
        for entry in status.get(name) or []:
            reason = ((entry.get("state") or {}).get("waiting") or {}).get("reason")
            if reason not in (None, "ContainerCreating", "PodInitializing"):
                return str(reason)
    return None


def _name_pods(name: str, ordinals: Sequence[int]) -> str:
    names = [f"{name}-{ordinal}" for ordinal in ordinals[:MAX_NAMED]]
    more = len(ordinals) - len(names)
    return " ".join(names) + (f" and {more} more" if more else "")


def _read_ordinal(pod: Object) -> int:
    return int(pod["metadata"]["name"].rpartition("-")[2])
