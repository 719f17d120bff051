"""Record the runs of each role in ``status.preflights``, ``attempts``, ``merges`` and ``cleanUps``. Pure.

A run of the trainer is one pod of a Job, which may replace it; any other run is one Job. All times are by the
operator's clock: clocks of nodes differ from it.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import datetime

from finetune_api.conditions import ConditionType
from finetune_api.finetunejob import Adjustment, Attempt, FineTuneJobStatus
from finetune_api.limits import ATTEMPT_MESSAGE_CHARACTERS, truncate
from finetune_api.reasons import Reason
from finetune_api.timestamps import format_timestamp, parse_timestamp
from finetune_operator.conditions import find_in
from finetune_operator.kube.kinds import ROLE_LABEL, Object, is_being_deleted
from finetune_operator.policies.batch_job import may_still_run
from finetune_operator.policies.halt import Halt
from finetune_operator.policies.outcome import Ended, Outcome
from finetune_operator.policies.pod_state import has_ended, read_state
from finetune_operator.policies.waiting import Waiting, break_silence, find_next_look
from finetune_operator.reconcile.finetunejob.model import JobStatusBuilder, Observed, PlanContext
from finetune_operator.resources.names import MERGE, PREFLIGHT, TRAINER, job_name, read_number

CONTINUED = (Reason.PREEMPTED, Reason.SUSPENDED)
"""Reasons after which a Job goes on with another pod, unless it ends by itself."""
KEPT_JOBS = 2
"""Jobs of a role that are kept: the newest one, and the one before it for its log."""


def split_runs(runs: Sequence[Attempt]) -> tuple[list[Attempt], Attempt | None]:
    """Split runs into those that have ended, and the current one if there is one."""
    if runs and runs[-1].finished_at is None:
        return list(runs[:-1]), runs[-1]
    return list(runs), None


def begin_run(
    role: str,
    number: int,
    context: PlanContext,
    adjustments: Sequence[Adjustment] = (),
    *,
    job_number: int | None = None,
) -> Attempt:
    """Make the record of a run that begins now, in the Job numbered ``job_number``, by default as the run.

    The Job exists already if it replaces a pod, or if the status write of the pass that created it was lost.
    """
    return Attempt(
        number=number,
        job_name=job_name(context.job.metadata.name, role, job_number or number),
        started_at=format_timestamp(context.now),
        adjustments=list(adjustments) or None,
    )


def find_pod(run: Attempt, finished: Sequence[Attempt], pods: Sequence[Object]) -> Object | None:
    """Find the pod of a run among those of its Job: its own one, or the first that no earlier run had.

    There is at most one pod at a time: the Job controller replaces only pods that have ended. Evicted pods may stay for
    longer than the status has their runs; they are older than the pods of all runs that it has.
    """
    if run.pod_uid is not None:
        return next((pod for pod in pods if pod["metadata"]["uid"] == run.pod_uid), None)
    return next(iter(_list_new_pods(finished, pods)), None)


def _list_new_pods(finished: Sequence[Attempt], pods: Sequence[Object]) -> list[Object]:
    """List the pods that no run had, the oldest first."""
    known = {earlier.pod_uid for earlier in finished}
    newest = max((earlier.pod_created_at or "" for earlier in finished), default="")

    def is_new(pod: Object) -> bool:
        meta = pod["metadata"]
        return meta["uid"] not in known and (meta["creationTimestamp"] >= newest or not has_ended(pod, TRAINER))

    return sorted(
        filter(is_new, pods), key=lambda pod: (pod["metadata"]["creationTimestamp"], not has_ended(pod, TRAINER))
    )


def add_pod(run: Attempt, pod: Object | None) -> Attempt:
    """Return the record of a run with its pod; unchanged if the pod is None, because it is gone."""
    if pod is None:
        return run
    meta = pod["metadata"]
    return update_run(run, pod_name=meta["name"], pod_uid=meta["uid"], pod_created_at=meta["creationTimestamp"])


def find_job_number(finished: Sequence[Attempt], observed: Observed, delete: Sequence[Object]) -> int:
    """Find the number of the Job in which the next run of the trainer begins, or began unseen.

    It is that of the last run as long as the cluster alone ended its pods; ``delete`` are Jobs that end now.
    """
    if not finished:
        return 1
    number = read_number(finished[-1].job_name)
    batch_job = observed.batch_jobs_of(TRAINER).get(number)
    if batch_job is None or finished[-1].reason not in CONTINUED:
        return number + 1
    new = _list_new_pods(finished, observed.pods_of(finished[-1].job_name))
    has_run = any(has_ended(pod, TRAINER) or "running" in read_state(pod, TRAINER) for pod in new)
    return number if has_run or (may_still_run(batch_job) and batch_job not in delete) else number + 1


def is_without_job(
    run: Attempt, finished: Sequence[Attempt], batch_jobs: Mapping[int, Object], pods: Sequence[Object]
) -> bool:
    """Return whether the Job of a run ended before it made a pod for it. The run then gets another Job."""
    if not finished or finished[-1].job_name != run.job_name or run.pod_uid is not None:
        return False
    batch_job = batch_jobs.get(read_number(run.job_name))
    return (batch_job is None or not may_still_run(batch_job)) and find_pod(run, finished, pods) is None


def end_run(run: Attempt, outcome: Ended, reason: str, message: str, now: datetime) -> Attempt:
    """Return the record of a run that has ended."""
    return update_run(
        run,
        finished_at=format_timestamp(now),
        reason=str(reason),
        message=truncate(message, ATTEMPT_MESSAGE_CHARACTERS) or None,
        exit_code=outcome.exit_code,
        node_name=outcome.node,
    )


def end_halted(outcome: Outcome, halt: Halt) -> Outcome:
    """Return the end of a run that had to stop, or the same outcome while its pod saves a checkpoint.

    A run that ended for another reason keeps that reason.
    """
    if isinstance(outcome, Waiting):
        return Ended(halt.reason, halt.message)
    if isinstance(outcome, Ended) and outcome.reason == Reason.PREEMPTED:
        return replace(outcome, reason=halt.reason, message=halt.message)
    return outcome


def update_run(run: Attempt, **changes: object) -> Attempt:
    """Return the record with these values; None keeps what it has."""
    return run.model_copy(update={name: value for name, value in changes.items() if value is not None})


def read_reason(run: Attempt) -> Reason:
    """Return the reason of a run that has ended; one that only a newer version knows counts as an error."""
    try:
        return Reason(run.reason or "")
    except ValueError:
        return Reason.TRAINER_ERROR


def find_waiting_seconds(run: Attempt, context: PlanContext) -> float:
    """Find for how many seconds the pod of a run is awaited, since its Job was created or it last ran."""
    since = parse_timestamp(run.started_at or format_timestamp(context.now))
    running = find_in(context.observed.resource, ConditionType.RUNNING)
    if running is not None:
        since = (
            max(since, parse_timestamp(running["lastTransitionTime"])) if running["status"] == "False" else context.now
        )
    return (context.now - since).total_seconds()


def find_active_seconds(run: Attempt | None, status: JobStatusBuilder, now: datetime) -> float:
    """Find for how many seconds trainers ran until now, the current run included."""
    before = status.read().active_seconds or 0
    return before + (0 if run is None or run.running_since is None else _find_running_seconds(run, now))


def add_active_seconds(run: Attempt, seconds: float | None, status: JobStatusBuilder, now: datetime) -> Attempt:
    """Add to the status the seconds for which a run's pod ran; return the record without running_since.

    ``seconds`` is that time by the clock of the node, which is exact. Without it the operator's clock counts.
    """
    if seconds is None:
        seconds = 0 if run.running_since is None else _find_running_seconds(run, now)
    if seconds > 0:
        status.set(FineTuneJobStatus(active_seconds=(status.read().active_seconds or 0) + round(seconds)))
    return run.model_copy(update={"running_since": None})


def _find_running_seconds(run: Attempt, now: datetime) -> float:
    return (now - parse_timestamp(run.running_since or format_timestamp(now))).total_seconds()


def is_suspending(context: PlanContext) -> bool:
    """Return whether a run is being stopped for a suspension: its Job is deleted."""
    suspended = find_in(context.observed.resource, ConditionType.SUSPENDED)
    return suspended is not None and suspended["reason"] == Reason.SUSPENDING


def begin_waiting(run: Attempt, waiting: Waiting, context: PlanContext) -> Attempt:
    """Return the record of a run whose pod is awaited. Its time starts after the pause before a replacement."""
    before = find_in(context.observed.resource, ConditionType.RUNNING)
    if waiting.reason is Reason.RETRYING or before is None or before["reason"] != Reason.RETRYING:
        return run
    return update_run(run, started_at=format_timestamp(context.now))


def find_pending_seconds_left(run: Attempt, waiting: Waiting, context: PlanContext) -> float:
    """Find for how many seconds the pod of a run may still be awaited, by spec.pendingDeadlineSeconds."""
    limit = context.job.spec.pending_deadline_seconds
    if limit is None or waiting.reason is Reason.RETRYING:
        return math.inf
    return limit - find_waiting_seconds(run, context)


def is_overdue(run: Attempt, waiting: Waiting, context: PlanContext) -> bool:
    """Return whether the pod of a run has been awaited for as long as spec.pendingDeadlineSeconds allows."""
    return find_pending_seconds_left(run, waiting, context) <= 0


def end_overdue(run: Attempt, waiting: Waiting, context: PlanContext) -> Attempt:
    """Return the record of a run whose pod did not start in time, with the reason for which it waited."""
    return end_run(run, Ended(waiting.reason, ""), waiting.reason, waiting.message, context.now)


def find_next_word(waiting: Waiting, run: Attempt, context: PlanContext) -> tuple[Waiting, float]:
    """Return a message for a run that waits for its pod, and the seconds until the next look (inf: none)."""
    seconds = find_waiting_seconds(run, context)
    look = find_next_look(waiting, seconds) or math.inf
    return break_silence(waiting, seconds, run.job_name), min(look, find_pending_seconds_left(run, waiting, context))


def find_blocking(observed: Observed, number: int) -> list[str]:
    """Name the trainer's other Jobs and their pods that still train, or may do so later."""
    trainers = observed.batch_jobs_of(TRAINER)
    own = trainers.pop(number)["metadata"]["name"] if number in trainers else None
    jobs = {batch_job["metadata"]["name"] for batch_job in trainers.values() if may_still_run(batch_job)}
    pods = {
        f"pod {pod['metadata']['name']}"
        for name, group in observed.pods.items()
        for pod in group
        if name != own and find_role(pod) == TRAINER and not has_ended(pod, TRAINER)
    }
    return [f"Job {name}" for name in sorted(jobs)] + sorted(pods)


def find_unfinished_jobs(observed: Observed) -> tuple[Object, ...]:
    """Find the Jobs that may still run a pod, to delete them."""
    return tuple(batch_job for batch_job in observed.batch_jobs if may_still_run(batch_job))


def find_superseded_jobs(observed: Observed) -> tuple[Object, ...]:
    """Find the Jobs of ended runs that are no longer needed, because the status has their results."""
    groups = (list(observed.batch_jobs_of(role).values()) for role in (PREFLIGHT, TRAINER, MERGE))
    return tuple(job for group in groups for job in group[:-KEPT_JOBS] if not is_being_deleted(job))


def find_role(child: Object) -> str:
    """Return the role of a Job or pod."""
    role: str = child["metadata"].get("labels", {}).get(ROLE_LABEL, "")
    return role
