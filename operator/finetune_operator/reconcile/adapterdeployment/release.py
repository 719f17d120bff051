"""Write the progress of a roll-out, its end, and its rollback into a status. Pure."""

from collections.abc import Sequence
from datetime import datetime
from typing import Literal

from finetune_api.adapterdeployment import (
    AdapterDeploymentStatus,
    AdapterVersion,
    PodCounts,
    RollbackStatus,
    Strategy,
    find_last_good,
)
from finetune_api.conditions import ConditionType
from finetune_api.limits import POD_MESSAGE_CHARACTERS, truncate
from finetune_api.reasons import Reason
from finetune_api.timestamps import format_timestamp
from finetune_api.version_paths import shorten
from finetune_operator.conditions import find_in
from finetune_operator.kube.kinds import Object
from finetune_operator.kube.workloads import refer_to
from finetune_operator.policies.canary import Hold
from finetune_operator.policies.failed_rollout import (
    Failure,
    Progress,
    find_progress_time,
    measure_remaining_seconds,
)
from finetune_operator.policies.revision_history import record_deployed, record_failed
from finetune_operator.policies.rollback import strip_version
from finetune_operator.policies.rollout import compute_budget
from finetune_operator.reconcile.adapterdeployment.canary import describe_stage, list_evidence, set_canary
from finetune_operator.reconcile.adapterdeployment.model import AdapterStatusBuilder, Member, Observed
from finetune_operator.reconcile.status_builder import read_status
from finetune_operator.resources.workloads import count_replicas, rules_of

AT_ONCE = 0.0
"""Seconds until the pass that moves the pods after a rollback was decided: the status has to be written before."""


def set_rollback(builder: AdapterStatusBuilder, member: Member, now: datetime) -> None:
    """Show the rollback that is in force, and record the one that a person asked for."""
    rollback, asked = member.rollback, member.asked
    recorded = builder.read().rollback
    if rollback is None or asked is None:
        builder.remove("rollback")
        return
    is_recorded = recorded is not None and (recorded.from_version.digest, recorded.reason) == (
        asked.digest,
        rollback.reason,
    )
    if not is_recorded:
        _record_rollback(builder, asked, rollback.reason, rollback.message, now)


def set_release(builder: AdapterStatusBuilder, observed: Observed, member: Member, now: datetime) -> float | None:
    """Show how far the roll-out is, or why it has ended; return the seconds until the next pass."""
    hold, has_passed = set_canary(builder, observed, member, now)
    if _serves_everywhere(builder, member):
        _record_served(builder, member, now)
        builder.remove("canary")
    if member.rollback is not None:
        _set_rolled_back(builder, member.failure)
    elif member.failure is not None:
        return _set_failure(builder, member, member.failure, now)
    elif member.suspended:
        text = f"spec.suspend is true: {_count(builder, member)}, and no further pod takes it"
        builder.conditions.set_idle(Reason.SUSPENDED, text)
    elif _serves_everywhere(builder, member):
        text = f"{_name(member)!r} is proven on each of {builder.read().pods.total} pods"
        builder.conditions.set_ready(Reason.SERVING, text)
    elif hold is not None:
        return _set_hold(builder, member, hold, now)
    elif observed.workload is not None and (wait := _find_wait(observed.workload, observed.pods)):
        builder.conditions.set_progressing(*wait)
    else:
        remaining = _set_progress(builder, observed, member, now)
        return AT_ONCE if has_passed else remaining
    return None


def _set_hold(builder: AdapterStatusBuilder, member: Member, hold: Hold, now: datetime) -> float | None:
    """Show what the step of a canary waits for. For GitOps a canary that waits for a person is suspended."""
    text = f"{describe_stage(member)}{_count(builder, member)}; {hold.message}"
    if hold.reason is Reason.ANALYSIS_FAILED:
        return _set_failure(builder, member, Failure(hold.reason, text, is_caused_by_version=True), now)
    if hold.seconds is not None:
        builder.conditions.set_progressing(hold.reason, text)
        return hold.seconds
    name = member.resource["metadata"]["name"]
    again = f"to ask again: finetune resume {name} --retry; " if hold.reason is Reason.ANALYSIS_INCONCLUSIVE else ""
    text += f". To go on: finetune resume {name}; {again}to go back: finetune abort {name}"
    builder.conditions.set_idle(hold.reason, text)
    builder.conditions.set(ConditionType.SUSPENDED, "True", hold.reason, text)
    return None


def _serves_everywhere(builder: AdapterStatusBuilder, member: Member) -> bool:
    counts = builder.read().pods
    return member.rolled_out and counts.ready == counts.total


def _record_served(builder: AdapterStatusBuilder, member: Member, now: datetime) -> None:
    status = builder.read()
    if status.desired is None:
        return
    active = status.active
    since = active.since if active is not None and active.digest == status.desired.digest else None
    version = status.desired.model_copy(update={"since": since or format_timestamp(now)})
    proofs = [f"pod {name}: {pod.proof}" for name, pod in sorted(member.pods.items()) if pod.proof]
    history = record_deployed(status.history, version, since or format_timestamp(now), proofs, list_evidence(builder))
    builder.set(AdapterDeploymentStatus(active=version, history=history))


def _set_rolled_back(builder: AdapterStatusBuilder, failure: Failure | None = None) -> None:
    """Show a rollback. For GitOps the object has failed until its spec changes, because the spec is not served.

    ``failure`` says why no pod takes the older version either, if that is so.
    """
    status = builder.read()
    rollback, serving = status.rollback, status.desired
    if rollback is None or serving is None:
        return
    cause = f" ({failure.message})" if failure is not None else ""
    text = (
        f"{shorten(rollback.from_version.digest)} was rolled back: {rollback.message}. {status.pods.updated} of "
        f"{status.pods.total} pods serve {shorten(serving.digest)} in its place{cause}. "
        "Let the spec ask for another version, or try this one again: finetune rollback NAME --undo"
    )
    builder.conditions.set_stalled(Reason.ROLLED_BACK, truncate(text, POD_MESSAGE_CHARACTERS))


def _set_failure(builder: AdapterStatusBuilder, member: Member, failure: Failure, now: datetime) -> float | None:
    """Show a failure; go back to the last good version if the spec allows it and there is one."""
    status, version = builder.read(), builder.read().desired
    text = truncate(failure.message, POD_MESSAGE_CHARACTERS)
    builder.conditions.set_stalled(failure.reason, text)
    is_served = status.active is not None and version is not None and status.active.digest == version.digest
    if version is None or member.spec is None or is_served or not failure.is_caused_by_version:
        return None
    good = find_last_good(status.history, version.digest)
    if good is None or member.spec.suspend or not member.spec.rollback.automatic:
        _record(builder, version, "Failed", failure.reason, text, now)
        return None
    _record_rollback(builder, version, failure.reason, text, now)
    builder.set(AdapterDeploymentStatus(desired=strip_version(good)))
    _set_rolled_back(builder)
    return AT_ONCE


def _record_rollback(
    builder: AdapterStatusBuilder, version: AdapterVersion, reason: str, message: str, now: datetime
) -> None:
    at = format_timestamp(now)
    rollback = RollbackStatus(from_version=version, at=at, reason=reason, message=message)
    builder.remove("rollback")
    builder.set(AdapterDeploymentStatus(rollback=rollback))
    _record(builder, version, "RolledBack", reason, message, now)


def _record(
    builder: AdapterStatusBuilder,
    version: AdapterVersion,
    event: Literal["RolledBack", "Failed"],
    reason: str,
    message: str,
    now: datetime,
) -> None:
    at, evidence = format_timestamp(now), list_evidence(builder)
    history = record_failed(builder.read().history, version, event, at, reason, message, evidence)
    builder.set(AdapterDeploymentStatus(history=history))


def _find_wait(workload: Object, pods: Sequence[Object]) -> tuple[Reason, str] | None:
    """Find why no pod can take the version, as reason and message; None if pods can."""
    ref = refer_to(workload)
    if blocker := rules_of(ref.kind).find_blocker(workload, pods):
        return blocker
    if count_replicas(workload) == 0:
        return Reason.NO_PODS, f"{ref} has no replicas: the adapter is served as soon as it has pods"
    return None


def _set_progress(builder: AdapterStatusBuilder, observed: Observed, member: Member, now: datetime) -> float | None:
    """Show a roll-out that continues, or that made no progress for too long."""
    status = builder.read()
    text = f"{describe_stage(member)}{_count(builder, member)}, {status.pods.ready} take traffic"
    moves = member.spec is None or (member.spec.strategy.type == "Hot" and member.spec.traffic is None)
    if moves and observed.workload is not None and count_replicas(observed.workload) == 1:
        text += "; with one pod the name is unavailable for less than a second while it moves"
    if member.pause and member.spec is not None:
        seconds = member.spec.strategy.pause_seconds
        text += f"; the next one takes it {seconds} s after the one before (spec.strategy.pauseSeconds)"
    failing = [(name, pod) for name, pod in sorted(member.pods.items()) if pod.state in ("Failed", "Refused")]
    reason: str = Reason.ROLLING_OUT
    if failing:
        name, pod = failing[0]
        again = "tries again" if pod.state == "Failed" else "refuses it"
        reason, text = pod.reason or reason, f"{text}; pod {name} {again}: {pod.message}"
    text = truncate(text, POD_MESSAGE_CHARACTERS)
    remaining = _measure_remaining(builder, observed, member, now)
    if remaining is not None and remaining <= 0:
        return _set_failure(builder, member, _describe_exceeded(member, status.pods, text), now)
    builder.conditions.set_progressing(reason, text)
    return remaining


def _describe_exceeded(member: Member, pods: PodCounts, text: str) -> Failure:
    """Describe an exceeded deadline. If fewer pods lag than may be unavailable, the version is not at fault."""
    strategy = member.spec.strategy if member.spec is not None else Strategy()
    deadline = (
        f"no pod made progress for {strategy.progress_deadline_seconds} s (spec.strategy.progressDeadlineSeconds)"
    )
    budget = compute_budget(pods.total, strategy.max_unavailable)
    return Failure(Reason.PROGRESS_DEADLINE_EXCEEDED, f"{deadline}: {text}", pods.total - pods.updated >= budget)


def _measure_remaining(
    builder: AdapterStatusBuilder, observed: Observed, member: Member, now: datetime
) -> float | None:
    """Record the last progress; return the seconds until the next is due, or None without a deadline.

    There is none for a version that every pod served already, for example while pods are added or restarted.
    """
    status = builder.read()
    if member.spec is None or status.desired is None:
        return None
    if status.active is not None and status.active.digest == status.desired.digest:
        return None
    before = read_status(AdapterDeploymentStatus, member.resource.get("status") or {})
    after = _view_progress(status, member.resource["metadata"]["generation"])
    progressed_at = find_progress_time(
        _view_progress(before, before.observed_generation or 0), after, before.progressed_at, now
    )
    builder.set(AdapterDeploymentStatus(progressed_at=progressed_at))
    stalled = find_in(member.resource, ConditionType.STALLED)
    was_exceeded = stalled is not None and stalled["reason"] == Reason.PROGRESS_DEADLINE_EXCEEDED
    if was_exceeded and progressed_at == before.progressed_at:
        return 0.0  # also after a restart of the operator, which starts the counted time again
    limit = member.spec.strategy.progress_deadline_seconds + member.spec.strategy.pause_seconds
    return measure_remaining_seconds(progressed_at, limit, observed.watched_seconds, now)


def _view_progress(status: AdapterDeploymentStatus, generation: int) -> Progress:
    digest = status.desired.digest if status.desired is not None else ""
    return Progress(digest, generation, status.pods.updated, status.pods.ready, status.pods.total)


def _count(builder: AdapterStatusBuilder, member: Member) -> str:
    counts = builder.read().pods
    return f"{_name(member)!r} is proven on {counts.updated} of {counts.total} pods"


def _name(member: Member) -> str:
    return member.spec.served_name if member.spec is not None else ""
