"""The status of an AdapterDeployment after a plan was applied. Pure."""

from collections import Counter
from datetime import datetime

from finetune_api.adapterdeployment import (
    AdapterDeploymentStatus,
    AdapterVersion,
    EngineStatus,
    HistoryEntry,
    JobIdentity,
    PodCounts,
    PodStatus,
)
from finetune_api.base import S3Location, SecretRef
from finetune_api.conditions import ConditionType
from finetune_api.limits import POD_MESSAGE_CHARACTERS, truncate
from finetune_api.messages import AgentAdapter, DesiredAdapter
from finetune_api.reasons import Reason
from finetune_api.timestamps import format_timestamp
from finetune_operator.conditions import describe_accepted, find, find_in
from finetune_operator.event_record import EventRecord
from finetune_operator.kube.kinds import Object
from finetune_operator.policies.revision_history import record_deployed, record_failed, trim
from finetune_operator.reconcile.adapterdeployment.model import (
    AdapterStatusBuilder,
    Member,
    Observed,
    Obstacle,
    Plan,
    StatusUpdate,
)
from finetune_operator.reconcile.adapterdeployment.rollout import count_replicas, has_rolled_out, is_available
from finetune_operator.reconcile.status_builder import StatusBuilder


def build_updates(observed: Observed, plan: Plan, injection: Obstacle | None, now: datetime) -> list[StatusUpdate]:
    """Build the new status of each member.

    ``injection`` says why the agent is not in the Deployment, if it is not.
    """
    return [_build_update(observed, plan, member, injection, now) for member in plan.members]


def _build_update(
    observed: Observed, plan: Plan, member: Member, injection: Obstacle | None, now: datetime
) -> StatusUpdate:
    builder = StatusBuilder(AdapterDeploymentStatus, member.resource, now)
    _set_accepted(builder, member)
    if member.spec is not None and member.spec.suspend:
        builder.conditions.set(ConditionType.SUSPENDED, "True", Reason.SUSPENDED, "spec.suspend holds the roll-out")
    else:
        builder.conditions.remove(ConditionType.SUSPENDED)
    _set_injected(builder, observed, plan, injection)
    if member.desired is not None:
        builder.set(AdapterDeploymentStatus(desired=build_version(member.desired, member.finetune_job)))
    total = int((observed.deployment or {}).get("status", {}).get("replicas", 0))
    counts = PodCounts(
        total=max(total, len(observed.pods)),
        updated=_count_updated(member),
        ready=sum(map(is_available, observed.pods)),
    )
    pod_status = [_build_pod_status(pod, member.pods.get(pod["metadata"]["name"])) for pod in observed.pods]
    builder.set(AdapterDeploymentStatus(pods=counts, engines=_count_engines(observed), pod_status=pod_status))
    obstacle = member.obstacle or injection
    if obstacle is not None:
        _set_obstacle(builder, obstacle)
    elif member.desired is not None and observed.deployment is not None:
        _set_rollout(builder, observed.deployment, member, member.desired, counts, now)
    if member.spec is not None and (history := builder.read().history):
        builder.set(AdapterDeploymentStatus(history=trim(history, member.spec.revision_history_limit)))
    status = builder.as_json()
    return StatusUpdate(member.resource, status, _build_events(member.resource, status))


def build_version(desired: DesiredAdapter, finetune_job: JobIdentity | None) -> AdapterVersion:
    """Describe a version with all that is needed to serve it again when its FineTuneJob is gone."""
    location = S3Location(endpoint=desired.endpoint, region=desired.region)
    return AdapterVersion(
        uri=desired.version.uri,
        digest=desired.version.digest,
        fine_tune_job=finetune_job,
        s3=location if location != S3Location() else None,
        secret_ref=SecretRef(name=desired.secret) if desired.secret else None,
    )


def _set_accepted(builder: AdapterStatusBuilder, member: Member) -> None:
    obstacle = member.obstacle
    if obstacle is None:
        text = "the target can serve the adapter, as far as their descriptions tell"
        message = describe_accepted(f"{text}. {member.note}" if member.note else text, member.unknown_fields)
        builder.conditions.set(ConditionType.ACCEPTED, "True", Reason.ACCEPTED, message)
    else:
        builder.conditions.set(
            ConditionType.ACCEPTED, "False" if obstacle.stalled else "Unknown", obstacle.reason, obstacle.message
        )


def _set_injected(builder: AdapterStatusBuilder, observed: Observed, plan: Plan, injection: Obstacle | None) -> None:
    if injection is not None:
        builder.conditions.set(ConditionType.INJECTED, "False", injection.reason, injection.message)
    elif plan.injection is not None:
        text = f"the agent is part of Deployment {observed.name!r}"
        if plan.injection.held:
            restart = f"kubectl rollout restart deployment/{observed.name}"
            text += f". {plan.injection.held} This comes when the pods are replaced anyway, or now with: {restart}"
        builder.conditions.set(ConditionType.INJECTED, "True", Reason.INJECTED, text)
    else:
        builder.conditions.remove(ConditionType.INJECTED)


def _set_obstacle(builder: AdapterStatusBuilder, obstacle: Obstacle) -> None:
    """Show why the adapter is not rolled out."""
    if obstacle.stalled:
        builder.conditions.set_stalled(obstacle.reason, obstacle.message)
    else:
        builder.conditions.set_progressing(obstacle.reason, obstacle.message)


def _set_rollout(
    builder: AdapterStatusBuilder,
    deployment: Object,
    member: Member,
    desired: DesiredAdapter,
    counts: PodCounts,
    now: datetime,
) -> None:
    """Show how far the roll-out is, or the first pod that refuses the version."""
    digest = desired.version.digest
    active = builder.read().active
    pods = sorted(member.pods.items())
    refused = next(((name, pod) for name, pod in pods if pod.state == "Refused" and pod.digest == digest), None)
    if refused is not None:
        name, pod = refused
        rest = "; the other pods stay on the version before" if builder.has("active") else ""
        text = truncate(f"pod {name}: {pod.message}{rest}", POD_MESSAGE_CHARACTERS)
        reason = pod.reason or Reason.ENGINE_REFUSED
        builder.conditions.set_stalled(reason, text)
        if active is None or active.digest != digest:
            version = build_version(desired, member.finetune_job)
            _set_history(
                builder, record_failed(builder.read().history, version, "Failed", format_timestamp(now), reason, text)
            )
        return
    if member.suspended:
        text = f"spec.suspend is true: {desired.served_name!r} is proven on {counts.updated} of {counts.total} pods, "
        builder.conditions.set_idle(Reason.SUSPENDED, text + "and no further pod takes it")
        return
    if member.rolled_out and counts.ready == counts.total:
        since = active.since if active is not None and active.digest == digest else None
        since = since or format_timestamp(now)
        version = build_version(desired, member.finetune_job).model_copy(update={"since": since})
        builder.set(AdapterDeploymentStatus(active=version))
        evidence = [f"pod {name}: {pod.proof}" for name, pod in pods if pod.proof]
        _set_history(builder, record_deployed(builder.read().history, version, since, evidence))
        text = f"{desired.served_name!r} is proven on each of {counts.total} pods"
        builder.conditions.set_ready(Reason.SERVING, text)
        return
    replicas = count_replicas(deployment)
    if deployment["spec"].get("paused") and not has_rolled_out(deployment, len(pods)):
        name = deployment["metadata"]["name"]
        text = f"Deployment {name!r} is paused, so its pods are not replaced: kubectl rollout resume deployment/{name}"
        builder.conditions.set_progressing(Reason.TARGET_PAUSED, text)
        return
    if replicas == 0:
        name = deployment["metadata"]["name"]
        text = f"Deployment {name!r} has no replicas: the adapter is served as soon as it has pods"
        builder.conditions.set_progressing(Reason.NO_PODS, text)
        return
    text = f"{desired.served_name!r} is proven on {counts.updated} of {counts.total} pods, {counts.ready} take traffic"
    if replicas == 1:
        text += "; with one pod the name does not answer for less than a second while it moves"
    failing = next(((name, pod) for name, pod in pods if pod.state == "Failed"), None)
    if failing is None:
        builder.conditions.set_progressing(Reason.ROLLING_OUT, text)
    else:
        name, pod = failing
        text = truncate(f"{text}; pod {name} tries again: {pod.message}", POD_MESSAGE_CHARACTERS)
        builder.conditions.set_progressing(pod.reason or Reason.ROLLING_OUT, text)


def _set_history(builder: AdapterStatusBuilder, history: list[HistoryEntry]) -> None:
    builder.set(AdapterDeploymentStatus(history=history))


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
    )


def _build_events(resource: Object, status: Object) -> tuple[EventRecord, ...]:
    """Build an event when an adapter begins to be served, when it is stuck, and when somebody else replaced it."""
    return (*_build_replacement_events(resource, status), *_build_ready_events(resource, status))


def _build_replacement_events(resource: Object, status: Object) -> list[EventRecord]:
    before = {pod["name"]: pod.get("replaced", 0) for pod in (resource.get("status") or {}).get("podStatus") or []}
    return [
        EventRecord(
            "Warning",
            Reason.ADAPTER_REPLACED,
            "Restore",
            f"pod {pod['name']}: somebody else's adapter was put under the served name; "
            "the pod left its Service until ours was proven there again. "
            "Close the engine's port to all but its gateway (NetworkPolicy)",
            key=f"{pod['name']}-{pod['replaced']}",
        )
        for pod in status.get("podStatus") or []
        if pod.get("replaced", 0) > before.get(pod["name"], 0)
    ]


def _build_ready_events(resource: Object, status: Object) -> tuple[EventRecord, ...]:
    before = find_in(resource, ConditionType.READY)
    after = find(status["conditions"], ConditionType.READY)
    if after is None or (
        before is not None and (before["status"], before["reason"]) == (after["status"], after["reason"])
    ):
        return ()
    digest = (status.get("desired") or {}).get("digest", "")
    if after["status"] == "True":
        return (EventRecord("Normal", after["reason"], "Serve", after["message"], key=digest),)
    if after["reason"] == Reason.SUSPENDED:
        return (EventRecord("Normal", after["reason"], "Suspend", after["message"], key=digest),)
    if after["status"] == "False":
        return (EventRecord("Warning", after["reason"], "Stop", after["message"], key=digest),)
    return ()
