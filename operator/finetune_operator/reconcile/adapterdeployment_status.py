"""The status of an AdapterDeployment, after a plan was applied. Pure; ``now`` is given."""

from datetime import datetime

from finetune_api.adapterdeployment import AdapterVersion, PodCounts, PodStatus
from finetune_api.conditions import ConditionType
from finetune_api.messages import AgentAdapter
from finetune_api.reasons import Reason
from finetune_operator.conditions import find, timestamp, truncate
from finetune_operator.kube.kinds import Object
from finetune_operator.notes import Note
from finetune_operator.reconcile.adapterdeployment_model import Group, GroupPlan, Member, NewStatus, Obstacle
from finetune_operator.reconcile.adapterdeployment_plan import is_available, replicas
from finetune_operator.reconcile.draft import Draft

MESSAGE_CHARACTERS = 4000


def statuses(group: Group, plan: GroupPlan, injection: Obstacle | None, now: datetime) -> list[NewStatus]:
    """The new status of each member. ``injection`` is why the agent could not be put into the Deployment, if it could not."""
    return [_status(group, plan, member, injection, now) for member in plan.members]


def _status(group: Group, plan: GroupPlan, member: Member, injection: Obstacle | None, now: datetime) -> NewStatus:
    draft = Draft.of(member.item, now)
    _accepted(draft, member.obstacle)
    _injected(draft, group, plan, injection)
    if member.wanted is not None:
        version = member.wanted.version
        draft.fields["desired"] = AdapterVersion(uri=version.uri, digest=version.digest).to_json()
    total = int((group.deployment or {}).get("status", {}).get("replicas", 0))
    counts = PodCounts(
        total=max(total, len(group.pods)), updated=_updated(member), ready=sum(map(is_available, group.pods))
    )
    draft.fields["pods"] = counts.to_json()
    draft.fields["podStatus"] = [_pod(pod, member.pods.get(pod["metadata"]["name"])) for pod in group.pods]
    _outcome(draft, group, member, counts, injection, now)
    status = draft.as_json()
    return NewStatus(member.item, status, _notes(member.item, status))


def _accepted(draft: Draft, obstacle: Obstacle | None) -> None:
    if obstacle is None:
        draft.conditions.set(
            ConditionType.ACCEPTED,
            "True",
            Reason.ACCEPTED,
            "the target can serve the adapter, as far as their descriptions tell",
        )
    else:
        draft.conditions.set(
            ConditionType.ACCEPTED, "False" if obstacle.stalled else "Unknown", obstacle.reason, obstacle.message
        )


def _injected(draft: Draft, group: Group, plan: GroupPlan, injection: Obstacle | None) -> None:
    if injection is not None:
        draft.conditions.set(ConditionType.INJECTED, "False", injection.reason, injection.message)
    elif plan.injection is not None:
        draft.conditions.set(
            ConditionType.INJECTED, "True", Reason.INJECTED, f"the agent is part of Deployment {group.name!r}"
        )
    else:
        draft.conditions.drop(ConditionType.INJECTED)


def _outcome(
    draft: Draft, group: Group, member: Member, counts: PodCounts, injection: Obstacle | None, now: datetime
) -> None:
    """Ready, Reconciling and Stalled: the first thing that stands in the way is told."""
    obstacle = member.obstacle or injection
    if obstacle is not None:
        (draft.conditions.stalled if obstacle.stalled else draft.conditions.progressing)(
            obstacle.reason, obstacle.message
        )
        return
    wanted = member.wanted
    if wanted is None or group.deployment is None:
        return
    digest = wanted.version.digest
    refused = [
        (name, pod) for name, pod in sorted(member.pods.items()) if pod.state == "Refused" and pod.digest == digest
    ]
    if refused:
        name, pod = refused[0]
        rest = "; the other pods stay on the version before" if draft.fields.get("active") else ""
        draft.conditions.stalled(
            pod.reason or Reason.ENGINE_REFUSED, truncate(f"pod {name}: {pod.message}{rest}", MESSAGE_CHARACTERS)
        )
        return
    if member.complete and counts.ready == counts.total:
        before = draft.fields.get("active") or {}
        since = before["since"] if before.get("digest") == digest and before.get("since") else timestamp(now)
        draft.fields["active"] = AdapterVersion(uri=wanted.version.uri, digest=digest, since=since).to_json()
        draft.conditions.ready(Reason.SERVING, f"{wanted.served_name!r} is proven on each of {counts.total} pods")
        return
    if replicas(group.deployment) == 0:
        draft.conditions.progressing(
            Reason.NO_PODS, f"Deployment {group.name!r} has no replicas: the adapter is served as soon as it has pods"
        )
        return
    failing = [(name, pod) for name, pod in sorted(member.pods.items()) if pod.state == "Failed"]
    text = f"{wanted.served_name!r} is proven on {counts.updated} of {counts.total} pods, {counts.ready} take traffic"
    if replicas(group.deployment) == 1:
        text += "; with one pod the name does not answer for less than a second while it moves"
    if failing:
        name, pod = failing[0]
        draft.conditions.progressing(
            pod.reason or Reason.ROLLING_OUT,
            truncate(f"{text}; pod {name} tries again: {pod.message}", MESSAGE_CHARACTERS),
        )
    else:
        draft.conditions.progressing(Reason.ROLLING_OUT, text)


def _updated(member: Member) -> int:
    if member.wanted is None:
        return 0
    return sum(
        pod.active_digest == member.wanted.version.digest and pod.state == "Active" for pod in member.pods.values()
    )


def _pod(pod: Object, adapter: AgentAdapter | None) -> Object:
    name = pod["metadata"]["name"]
    if adapter is None:
        return PodStatus(name=name, state="Pending").to_json()
    return PodStatus(
        name=name,
        digest=adapter.active_digest,
        state=adapter.state,
        reason=adapter.reason,
        message=truncate(adapter.message, MESSAGE_CHARACTERS) or None,
        load_seconds=adapter.load_seconds,
    ).to_json()


def _notes(item: Object, status: Object) -> tuple[Note, ...]:
    """An event when an adapter begins to be served, and when it is stuck."""
    before = find((item.get("status") or {}).get("conditions") or [], ConditionType.READY)
    after = find(status["conditions"], ConditionType.READY)
    if after is None or (
        before is not None and (before["status"], before["reason"]) == (after["status"], after["reason"])
    ):
        return ()
    digest = (status.get("desired") or {}).get("digest", "")
    if after["status"] == "True":
        return (Note("Normal", after["reason"], "Serve", after["message"], once=digest),)
    if after["status"] == "False":
        return (Note("Warning", after["reason"], "Stop", after["message"], once=digest),)
    return ()
