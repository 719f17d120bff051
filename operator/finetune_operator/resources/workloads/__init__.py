"""Read how an inference workload replaces its pods. Pure: one module for each kind.

A module for another kind has the functions of ``Rules``, and an entry in ``RULES``.
"""

from finetune_operator.kube.kinds import DEPLOYMENT, POD, STATEFUL_SET, Kind, Object
from finetune_operator.resources.workloads import deployment, pods, statefulset
from finetune_operator.resources.workloads.base import Rules, count_pods, count_replicas, is_observed

__all__ = ["Rules", "count_pods", "count_replicas", "has_rolled_out", "is_observed", "replaces_pods", "rules_of"]
RULES: dict[str, Rules] = {DEPLOYMENT.name: deployment, STATEFUL_SET.name: statefulset, POD.name: pods}


def rules_of(kind: Kind) -> Rules:
    """Return the rules for the pods of workloads of a kind."""
    return RULES[kind.name]


def replaces_pods(workload: Object) -> bool:
    """Return whether a change of the workload's template costs no restart now.

    That is so while it replaces its pods anyway, or has none. False as long as its status is of an older spec.
    """
    return is_observed(workload) and RULES[workload["kind"]].replaces_pods(workload)


def has_rolled_out(workload: Object, pods: int) -> bool:
    """Return whether all pods of the workload have the agent, and none is to be replaced.

    ``pods`` is how many have the agent.
    """
    is_complete = is_observed(workload) and count_pods(workload) == count_replicas(workload) == pods
    return is_complete and RULES[workload["kind"]].is_up_to_date(workload)
