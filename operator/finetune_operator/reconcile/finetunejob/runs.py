"""The runs of the preflight and of the trainer, as ``status.preflights`` and ``status.attempts`` record them. Pure.

A run is one batch/v1 Job. All times are by the operator's clock: clocks of nodes differ from it.
"""

import math
from collections.abc import Sequence
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
from finetune_operator.policies.pod_state import has_ended
from finetune_operator.policies.waiting import Waiting, break_silence, find_next_look
from finetune_operator.reconcile.finetunejob.model import JobStatusBuilder, Observed, PlanContext
from finetune_operator.resources.names import PREFLIGHT, TRAINER, job_name

KEPT_JOBS = 2
"""Jobs of a role that are kept: the newest one, and the one before it for its log."""


def split_runs(runs: Sequence[Attempt]) -> tuple[list[Attempt], Attempt | None]:
    """Split runs into those that have ended, and the current one if there is one."""
    if runs and runs[-1].finished_at is None:
        return list(runs[:-1]), runs[-1]
    return list(runs), None


def begin_run(role: str, number: int, context: PlanContext, adjustments: Sequence[Adjustment] = ()) -> Attempt:
    """Make the record of a run that begins now. Its Job exists already if the status write of that pass was lost."""
    return Attempt(
        number=number,
        job_name=job_name(context.job.metadata.name, role, number),
        started_at=format_timestamp(context.now),
        adjustments=list(adjustments) or None,
    )


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
    """Return how a run ended that had to stop; the outcome as it is while the pod still saves a checkpoint.

    A run that ended for a reason of its own keeps that.
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
    """Find for how long the pod of a run is awaited: since its Job was created, or since it last ran."""
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
    """Add the time for which a run had a pod that is gone, and return its record without this pod.

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


def find_pending_seconds_left(run: Attempt, context: PlanContext) -> float:
    """Find for how many seconds the pod of a run may still be awaited, by spec.pendingDeadlineSeconds."""
    limit = context.job.spec.pending_deadline_seconds
    return math.inf if limit is None else limit - find_waiting_seconds(run, context)


def is_overdue(run: Attempt, context: PlanContext) -> bool:
    """Return whether the pod of a run has been awaited for as long as spec.pendingDeadlineSeconds allows."""
    return find_pending_seconds_left(run, context) <= 0


def end_overdue(run: Attempt, waiting: Waiting, context: PlanContext) -> Attempt:
    """Return the record of a run whose pod did not start in time: it ends with the reason for which it waited."""
    return end_run(run, Ended(waiting.reason, ""), waiting.reason, waiting.message, context.now)


def find_next_word(waiting: Waiting, run: Attempt, context: PlanContext) -> tuple[Waiting, float]:
    """Find what to say of a run whose pod is awaited, and in how many seconds to look again; infinite for never."""
    seconds = find_waiting_seconds(run, context)
    look = find_next_look(waiting, seconds) or math.inf
    return break_silence(waiting, seconds, run.job_name), min(look, find_pending_seconds_left(run, context))


def find_blocking(observed: Observed, number: int) -> list[str]:
    """Name the Jobs and pods of other attempts than this one that still train, or may do so later."""
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
    """Find the Jobs of ended runs that nobody needs any more; the status has what they did."""
    status = observed.resource.get("status", {})
    found: list[Object] = []
    for role, runs in ((PREFLIGHT, status.get("preflights")), (TRAINER, status.get("attempts"))):
        newest = runs[-1]["number"] if runs else 0
        jobs = observed.batch_jobs_of(role).items()
        found += [job for number, job in jobs if number <= newest - KEPT_JOBS and not is_being_deleted(job)]
    return tuple(found)


def find_role(child: Object) -> str:
    """Return the role of a Job or pod."""
    role: str = child["metadata"].get("labels", {}).get(ROLE_LABEL, "")
    return role
