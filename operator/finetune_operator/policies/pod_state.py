"""Read the state of our own container in a pod, whatever containers others have added to it. Pure."""

from finetune_api.timestamps import parse_timestamp
from finetune_operator.kube.kinds import Object

END_NOW = {"spec": {"activeDeadlineSeconds": 1}}
"""Patch with which the kubelet ends a pod but keeps its status and log. A pod's deadline may be set at any time."""
ENDED_PHASES = ("Failed", "Succeeded")


def read_state(pod: Object, container: str) -> Object:
    """Read the state of a container. It has ``waiting``, ``running`` or ``terminated``, or is still empty."""
    for entry in pod["status"].get("containerStatuses") or ():
        if entry["name"] == container:
            return dict(entry.get("state") or {})
    return {}


def has_ended(pod: Object, container: str) -> bool:
    """Return whether the container will not run any more."""
    return "terminated" in read_state(pod, container) or pod["status"].get("phase") in ENDED_PHASES


def find_duration(state: Object) -> float | None:
    """Find for how many seconds a container ran that has ended; both times are by the clock of its node."""
    terminated = state.get("terminated") or {}
    if not terminated.get("startedAt") or not terminated.get("finishedAt"):
        return None
    return (parse_timestamp(terminated["finishedAt"]) - parse_timestamp(terminated["startedAt"])).total_seconds()


def is_held_by_sidecar(pod: Object, container: str) -> bool:
    """Return whether the container has ended while another one keeps the pod, and so its GPU.

    Native sidecars do not count: the kubelet ends them by itself.
    """
    if pod["status"].get("phase") in ENDED_PHASES or "terminated" not in read_state(pod, container):
        return False
    return any("terminated" not in (entry.get("state") or {}) for entry in pod["status"]["containerStatuses"])


def is_being_ended(pod: Object) -> bool:
    """Return whether somebody has deleted the pod, or ``END_NOW`` was applied to it."""
    patched = pod["spec"].get("activeDeadlineSeconds") == END_NOW["spec"]["activeDeadlineSeconds"]
    return patched or "deletionTimestamp" in pod["metadata"]


def is_on_lost_node(pod: Object) -> bool:
    """Return whether the pod's node does not answer any more.

    The node controller then sets the pod unready, while its containers are ready by the kubelet's last status.
    """
    if pod["status"].get("reason") == "NodeLost":
        return True
    conditions = {condition["type"]: condition["status"] for condition in pod["status"].get("conditions", ())}
    gated = bool(pod["spec"].get("readinessGates"))
    return conditions.get("Ready") == "False" and conditions.get("ContainersReady") == "True" and not gated
