"""Plan which pods serve which version of one member of a serving group. Pure."""

from collections.abc import Mapping
from dataclasses import replace
from datetime import datetime

from pydantic import ValidationError

from finetune_api.adapterdeployment import AdapterDeploymentStatus
from finetune_api.messages import AgentAdapter, DesiredAdapter, DesiredVersion
from finetune_api.reasons import Reason
from finetune_operator.kube.kinds import Object
from finetune_operator.policies.canary import find_stage
from finetune_operator.policies.failed_rollout import find_refusal
from finetune_operator.policies.rollout import PodView, compute_budget, measure_pause, roll_out
from finetune_operator.reconcile.adapterdeployment.model import Member, Observed
from finetune_operator.reconcile.status_builder import read_status
from finetune_operator.resources.workloads import count_replicas, has_rolled_out, rules_of


def plan_rollout(
    observed: Observed, member: Member, before: DesiredAdapter | None, unavailable: frozenset[str], now: datetime
) -> tuple[Member, frozenset[str]]:
    """Plan the next step of a member.

    Args:
        observed: The serving group.
        member: The member, resolved.
        before: The member's entry in the ConfigMap as it is now.
        unavailable: Pods that older members take out of the Service in this pass.
        now: The time of this pass.

    Returns:
        The member with its new entry, and ``unavailable`` with the pods that this member takes out.
    """
    spec, desired = member.spec, member.desired
    if before is not None and spec is not None and before.served_name != spec.served_name:
        before = None
    if spec is None or desired is None or member.obstacle is not None:
        is_taken = member.obstacle is not None and member.obstacle.reason is Reason.SERVED_NAME_TAKEN
        return replace(member, entry=None if is_taken else before), unavailable
    reports = {pod["metadata"]["name"]: find_report(observed, member, pod) for pod in observed.pods}
    reported = {name: adapter for name, adapter in reports.items() if adapter is not None}
    replicas = count_replicas(observed.workload) if observed.workload is not None else 0
    desired = desired.model_copy(update={"drain": replicas > 1, "previous": None, "pods": None})
    serving = {adapter.active_digest for adapter in reported.values()}
    is_rolling = spec.strategy.type == "Rolling"  # then each pod's template says what it serves
    previous = None if is_rolling else _choose_previous(member.resource, desired.version, before, serving)
    views = view_pods(observed, reports, desired.version, previous)
    status = read_status(AdapterDeploymentStatus, member.resource.get("status") or {})
    has_canary = previous is not None and member.rollback is None
    canary = spec.strategy.canary if has_canary else None
    stage = find_stage(canary, status.canary, desired.version.digest, replicas, views)
    proven = bool(views) and all(view.proven for view in views) and stage is None
    budget = compute_budget(len(views), spec.strategy.max_unavailable)
    failure = find_refusal(reported, desired.version.digest, budget if stage is None else min(budget, stage.pods))
    rolled_out = proven and observed.workload is not None and has_rolled_out(observed.workload, len(views))
    member = replace(member, pods=reported, stage=stage, failure=failure, rolled_out=rolled_out)
    if spec.suspend and not proven and _is_change(before, desired.version):
        return replace(member, entry=before, suspended=True), unavailable
    if previous is None or proven:
        return replace(member, entry=desired), unavailable
    if stage is None and _moves_by_restart(observed):
        return replace(member, entry=desired.model_copy(update={"previous": previous})), unavailable
    skips_pause = member.rollback is not None or (stage is not None and stage.reached)
    pause_seconds = 0 if skips_pause else spec.strategy.pause_seconds
    pause = measure_pause(views, pause_seconds, status.pods.updated, status.progressed_at, now)
    assigned = before.pods if before is not None and before.version.digest == desired.version.digest else []
    limit = stage.pods if stage is not None else None
    rollout = roll_out(views, assigned, 0 if pause else spec.strategy.max_unavailable, unavailable, limit)
    pods = None if rollout.assigned is None else list(rollout.assigned)
    entry = desired.model_copy(update={"previous": previous, "pods": pods})
    return replace(member, entry=entry, pause=pause), unavailable | rollout.moving


def _is_change(before: DesiredAdapter | None, version: DesiredVersion) -> bool:
    """Return whether a pod still has to take the version, according to the previous entry."""
    return before is None or before.version.digest != version.digest or before.previous is not None


def _moves_by_restart(observed: Observed) -> bool:
    """Return whether every engine needs a restart for another version.

    Then the workload's own update sets the pace, and each new pod takes the new version at once. The pods before it
    keep theirs.
    """
    engines = [report.engine for report in observed.agent_reports.values() if report.engine is not None]
    return bool(engines) and all(engine.moves_by_restart for engine in engines)


def is_available(pod: Object) -> bool:
    """Return whether the pod takes traffic."""
    conditions = (pod.get("status") or {}).get("conditions") or []
    return any(condition["type"] == "Ready" and condition["status"] == "True" for condition in conditions)


def _choose_previous(
    resource: Object, version: DesiredVersion, before: DesiredAdapter | None, serving: set[str | None]
) -> DesiredVersion | None:
    """Choose the version for pods whose turn has not come; None if no pod has to wait.

    It is the version that every pod served last, else that of the previous entry, if any pod serves it.
    """
    if before is not None and before.version.digest == version.digest and before.previous is None:
        return None
    active = (resource.get("status") or {}).get("active")
    if active is not None and active["digest"] != version.digest:
        return DesiredVersion(uri=active["uri"], digest=active["digest"])
    if before is None:
        return None
    if before.version.digest != version.digest:
        return before.version if before.version.digest in serving else None
    return before.previous


def find_report(observed: Observed, member: Member, pod: Object) -> AgentAdapter | None:
    """Find what the pod's agent reported about this member.

    Until the agent has reported to this process of the operator, the status says what it reported last.
    """
    name, meta = pod["metadata"]["name"], member.resource["metadata"]
    if report := observed.agent_reports.get(name):
        return next((adapter for adapter in report.adapters if adapter.deployment == meta["name"]), None)
    if member.spec is None:
        return None
    status = read_status(AdapterDeploymentStatus, member.resource.get("status") or {})
    pod_status = next((pod_status for pod_status in status.pod_status if pod_status.name == name), None)
    if pod_status is None:
        return None
    try:
        return AgentAdapter.model_validate(
            {
                "deployment": meta["name"],
                "servedName": member.spec.served_name,
                "digest": status.desired.digest if status.desired else "",
                "activeDigest": pod_status.digest,
                "state": pod_status.state,
                "reason": pod_status.reason,
                "message": pod_status.message or "",
                "loadSeconds": pod_status.load_seconds,
                "proof": pod_status.proof or "",
                "replaced": pod_status.replaced or 0,
                "failedReproofs": pod_status.failed_reproofs or 0,
            }
        )
    except ValidationError:  # a state or reason of a newer version: the agent's next report replaces it
        return None


def view_pods(
    observed: Observed,
    reports: Mapping[str, AgentAdapter | None],
    version: DesiredVersion,
    previous: DesiredVersion | None,
) -> list[PodView]:
    """View the pods with regard to a version, in the order in which they take it."""
    in_turn = rules_of(observed.target.kind).sort_pods(observed.pods)
    return [_view_pod(pod, reports[pod["metadata"]["name"]], version, previous) for pod in in_turn]


def _view_pod(
    pod: Object, adapter: AgentAdapter | None, version: DesiredVersion, previous: DesiredVersion | None
) -> PodView:
    assigned = adapter is not None and adapter.digest == version.digest
    active = adapter.active_digest if adapter is not None else None
    return PodView(
        name=pod["metadata"]["name"],
        proven=assigned and active == version.digest and adapter is not None and adapter.state == "Active",
        refused=assigned and adapter is not None and adapter.state == "Refused",
        on_previous=previous is not None and active == previous.digest,
        available=is_available(pod),
    )
