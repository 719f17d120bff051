"""Decide whether the Job controller replaces a trainer's pod, because Kubernetes took it away. Pure.

So a job recovers while the operator is down, and keeps its place in a queue. Any other end of a pod ends the Job, and
the operator decides what follows. ``podFailurePolicy`` of the Job (``resources.jobs``) says the same.
"""

from finetune_api.reasons import FINAL_EXIT_CODES
from finetune_operator.kube.kinds import DISRUPTION_CONDITION, Object
from finetune_operator.policies.pod_state import read_state


def find_disruption(pod: Object) -> Object | None:
    """Find the condition that says why Kubernetes takes a pod away."""
    for condition in pod["status"].get("conditions") or ():
        if condition["type"] == DISRUPTION_CONDITION and condition["status"] == "True":
            return dict(condition)
    return None


def is_replaced(pod: Object, container: str) -> bool:
    """Return whether the Job controller replaces this pod, whose container has ended, by another one."""
    exit_code = read_state(pod, container).get("terminated", {}).get("exitCode")
    has_failed = pod["status"].get("phase") != "Succeeded"
    return has_failed and find_disruption(pod) is not None and exit_code not in FINAL_EXIT_CODES
