"""Build the status of an AdapterDeployment after a plan was applied. Pure."""

from collections import Counter
from datetime import datetime

from finetune_api.adapterdeployment import (
    AdapterDeploymentStatus,
    EngineStatus,
    PodCounts,
    PodStatus,
)
from finetune_api.conditions import ConditionType
from finetune_api.limits import POD_MESSAGE_CHARACTERS, truncate
from finetune_api.messages import AgentAdapter
from finetune_api.reasons import Reason
from finetune_operator.conditions import describe_accepted, find, find_in
from finetune_operator.event_record import EventRecord
from finetune_operator.kube.kinds import Object
from finetune_operator.policies.revision_history import trim
from finetune_operator.reconcile.adapterdeployment.canary import build_analysis
from finetune_operator.reconcile.adapterdeployment.model import (
    AdapterStatusBuilder,
    Member,
    Observed,
    Obstacle,
    Plan,
    StatusUpdate,
)
from finetune_operator.reconcile.adapterdeployment.release import set_release, set_rollback
from finetune_operator.reconcile.adapterdeployment.rollout import is_available
from finetune_operator.reconcile.adapterdeployment.version import build_version
from finetune_operator.reconcile.status_builder import StatusBuilder
from finetune_operator.resources.workloads import count_pods, rules_of


def build_updates(observed: Observed, plan: Plan, injection: Obstacle | None, now: datetime) -> list[StatusUpdate]:
    """Build the new status of each member.

    ``injection`` says why the agent is not in the workload, if it is not.
    """
    return [_build_update(observed, plan, member, injection, now) for member in plan.members]


def _build_update(
    observed: Observed, plan: Plan, member: Member, injection: Obstacle | None, now: datetime
) -> StatusUpdate:
    builder = StatusBuilder(AdapterDeploymentStatus, member.resource, now)
    builder.set(AdapterDeploymentStatus(target=observed.target.name))
    _set_accepted(builder, member)
    if member.spec is not None and member.spec.suspend:
        builder.conditions.set(ConditionType.SUSPENDED, "True", Reason.SUSPENDED, "spec.suspend holds the roll-out")
    else:
        builder.conditions.remove(ConditionType.SUSPENDED)
    _set_injected(builder, observed, plan, injection)
    if member.desired is not None:
        builder.set(AdapterDeploymentStatus(desired=build_version(member.desired, member.finetune_job)))
        set_rollback(builder, member, now)
    total = count_pods(observed.workload) if observed.workload is not None else 0
    counts = PodCounts(
        total=max(total, len(observed.pods)),
        updated=_count_updated(member),
        ready=sum(map(is_available, observed.pods)),
    )
    pod_status = [_build_pod_status(pod, member.pods.get(pod["metadata"]["name"])) for pod in observed.pods]
    builder.set(AdapterDeploymentStatus(pods=counts, engines=_count_engines(observed), pod_status=pod_status))
    builder.remove("progressedAt")  # a roll-out that continues sets it again
    obstacle = member.obstacle or injection
    requeue_after = None
    if obstacle is not None:
        _set_obstacle(builder, obstacle)
    elif member.desired is not None and observed.workload is not None:
        requeue_after = set_release(builder, observed, member, now)
    if member.spec is not None and (history := builder.read().history):
        builder.set(AdapterDeploymentStatus(history=trim(history, member.spec.revision_history_limit)))
    status, events = builder.as_json(), _build_events(member.resource, builder.as_json())
    analysis = build_analysis(builder, member, now) if injection is None else None
    return StatusUpdate(member.resource, status, events, requeue_after, analysis)


def _set_accepted(builder: AdapterStatusBuilder, member: Member) -> None:
    obstacle = member.obstacle
    if obstacle is None:
        text = "the target can serve the adapter, according to its arguments and the adapter's description"
        message = describe_accepted(f"{text}. {member.note}" if member.note else text, member.unknown_fields)
        builder.conditions.set(ConditionType.ACCEPTED, "True", Reason.ACCEPTED, message)
    else:
        builder.conditions.set(
            ConditionType.ACCEPTED, "False" if obstacle.stalled else "Unknown", obstacle.reason, obstacle.message
        )


def _set_injected(builder: AdapterStatusBuilder, observed: Observed, plan: Plan, injection: Obstacle | None) -> None:
    if injection is not None:
        builder.conditions.set(ConditionType.INJECTED, "False", injection.reason, injection.message)
    elif observed.workload is not None and not rules_of(observed.target.kind).GETS_AGENT:
        blocker = rules_of(observed.target.kind).find_blocker(observed.workload, observed.pods)
        reason, text = blocker or (Reason.INJECTED, f"the agent is in all pods with {observed.target.name}")
        builder.conditions.set(ConditionType.INJECTED, "False" if blocker else "True", reason, text)
    elif plan.injection is not None:
        text = f"the agent is part of {observed.target}"
        if plan.injection.pending:
            restart = f"kubectl rollout restart {observed.target.kubectl_name}"
            text += f". {plan.injection.pending} This comes when the pods are replaced anyway, or now with: {restart}"
        builder.conditions.set(ConditionType.INJECTED, "True", Reason.INJECTED, text)
    else:
        builder.conditions.remove(ConditionType.INJECTED)


def _set_obstacle(builder: AdapterStatusBuilder, obstacle: Obstacle) -> None:
    """Show why the adapter is not rolled out."""
    if obstacle.stalled:
        builder.conditions.set_stalled(obstacle.reason, obstacle.message)
    else:
        builder.conditions.set_progressing(obstacle.reason, obstacle.message)


def _count_updated(member: Member) -> int:
    if member.desired is None:
        return 0
    digest = member.desired.version.digest
    return sum(pod.active_digest == digest and pod.state == "Active" for pod in member.pods.values())


def _count_engines(observed: Observed) -> list[EngineStatus]:
    """Count the pods of each version of the engine, the versions in alphabetical order."""
    engines = [report.engine for report in observed.agent_reports.values() if report.engine is not None]
    pods = Counter(engine.version or "" for engine in engines)
    limits = {engine.version or "": engine.limits for engine in engines}
    return [EngineStatus(version=name or None, pods=count, limits=limits[name]) for name, count in sorted(pods.items())]


def _build_pod_status(pod: Object, adapter: AgentAdapter | None) -> PodStatus:
    name = pod["metadata"]["name"]
    if adapter is None:
        return PodStatus(name=name, state="Pending")
    return PodStatus(
        name=name,
        digest=adapter.active_digest,
        state=adapter.state,
        reason=adapter.reason,
        message=truncate(adapter.message, POD_MESSAGE_CHARACTERS) or None,
        load_seconds=adapter.load_seconds,
        proof=truncate(adapter.proof, POD_MESSAGE_CHARACTERS) or None,
        replaced=adapter.replaced or None,
        failed_reproofs=adapter.failed_reproofs or None,
    )


def _build_events(resource: Object, status: Object) -> tuple[EventRecord, ...]:
    """Build an event if an adapter begins to be served or is stuck, or if a pod had to restore it."""
    replaced = (
        "somebody else's adapter was put under the served name; the pod left its Service until ours was proven there "
        "again. Close the engine's port to all but its gateway (NetworkPolicy)"
    )
    spoiled = (
        "what answers under the served name was proven, and failed a later proof; the pod left its Service, and loads "
        "and proves the version again. If that fails too, its engine must be restarted"
    )
    return (
        *_build_restore_events(resource, status, "replaced", Reason.ADAPTER_REPLACED, replaced),
        *_build_restore_events(resource, status, "failedReproofs", Reason.PROOF_FAILED, spoiled),
        *_build_ready_events(resource, status),
    )


def _build_restore_events(
    resource: Object, status: Object, count: str, reason: Reason, message: str
) -> list[EventRecord]:
    """Build an event for each pod whose count has risen."""
    before = {pod["name"]: pod.get(count, 0) for pod in (resource.get("status") or {}).get("podStatus") or []}
    return [
        EventRecord("Warning", reason, "Restore", f"pod {pod['name']}: {message}", key=f"{pod['name']}-{pod[count]}")
        for pod in status.get("podStatus") or []
        if pod.get(count, 0) > before.get(pod["name"], 0)
    ]


def _build_ready_events(resource: Object, status: Object) -> tuple[EventRecord, ...]:
    before = find_in(resource, ConditionType.READY)
    after = find(status["conditions"], ConditionType.READY)
    if after is None or (
        before is not None and (before["status"], before["reason"]) == (after["status"], after["reason"])
    ):
        return ()
    digest = (status.get("desired") or {}).get("digest", "")
    if rollback := status.get("rollback"):
        key = f"{rollback['from']['digest']}-{rollback['at']}"
        return (EventRecord("Warning", after["reason"], "RollBack", after["message"], key=key),)
    if after["status"] == "True":
        return (EventRecord("Normal", after["reason"], "Serve", after["message"], key=digest),)
    if after["reason"] == Reason.SUSPENDED:
        return (EventRecord("Normal", after["reason"], "Suspend", after["message"], key=digest),)
    if after["reason"] in (Reason.CANARY_PAUSED, Reason.ANALYSIS_INCONCLUSIVE):
        step = (status.get("canary") or {}).get("passedSteps", 0) + 1
        key = f"{digest}-{(status.get('canary') or {}).get('startedAt')}-{step}"
        return (EventRecord("Normal", after["reason"], "Pause", after["message"], key=key),)
    if after["status"] == "False":
        return (EventRecord("Warning", after["reason"], "Stop", after["message"], key=digest),)
    return ()
