"""Plan the attempts: one trainer Job at a time. Pure.

The reason that ended an attempt decides what follows it.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from finetune_api import ladder
from finetune_api.finetunejob import Adjustment, Attempt, FineTuneJob, FineTuneJobStatus
from finetune_api.messages import TrainerResult
from finetune_api.reasons import NODE_REASONS, Reason
from finetune_api.timestamps import format_timestamp, parse_timestamp
from finetune_operator.kube.kinds import Object
from finetune_operator.policies.batch_job import is_suspended
from finetune_operator.policies.halt import Halt, find_halt
from finetune_operator.policies.outcome import SUCCEEDED, Ended, Outcome, Running, classify_pod
from finetune_operator.policies.retry import Ending, GiveUp, RetryAt, decide
from finetune_operator.policies.waiting import Waiting
from finetune_operator.reconcile.finetunejob.model import JobStatusBuilder, Plan, PlanContext
from finetune_operator.reconcile.finetunejob.runs import (
    add_active_seconds,
    begin_run,
    end_halted,
    end_overdue,
    end_run,
    find_active_seconds,
    find_blocking,
    find_next_word,
    find_unfinished_jobs,
    is_overdue,
    is_suspending,
    read_reason,
    split_runs,
    update_run,
)
from finetune_operator.reconcile.finetunejob.status import (
    add_attempt_failed_event,
    set_attempt_failed,
    set_attempts,
    set_given_up,
    set_halted,
    set_never_started,
    set_node_lost,
    set_resumed,
    set_retrying,
    set_running,
    set_starting,
    set_stopping,
    set_succeeded,
    set_trainer_result,
    set_waiting_for,
)
from finetune_operator.resources.jobs import ResolvedModel, build_trainer_job
from finetune_operator.resources.names import TRAINER

MAX_AVOIDED_NODES = 5
PATIENCE_SECONDS = 5.0
"""For how long nothing is said of a Job whose attempt has ended, and which the Job controller has not ended yet."""


@dataclass(frozen=True)
class AttemptContext:
    """What follows the finished attempts: computed once for them, and handed on.

    ``decision`` is None before the first attempt. ``job`` is the FineTuneJob as the next attempt trains it, with
    ``adjustments`` as its difference from the spec.
    """

    finished: tuple[Attempt, ...]
    number: int
    decision: RetryAt | GiveUp | None
    job: FineTuneJob
    adjustments: tuple[Adjustment, ...]

    @classmethod
    def after(cls, finished: Sequence[Attempt], context: PlanContext, status: JobStatusBuilder) -> "AttemptContext":
        """Compute what follows these attempts, given in their order."""
        spec = context.job.spec
        suspensions = status.read().suspensions or 0
        endings = [
            Ending(
                attempt.number,
                read_reason(attempt),
                parse_timestamp(attempt.finished_at or ""),
                ladder.needs_less_memory(spec, attempt.reason or ""),
            )
            for attempt in finished
        ]
        # What was reduced stays so: a changed failurePolicy decides on the following steps only.
        last = ladder.apply_adjustments(spec, (finished[-1].adjustments or ()) if finished else ())
        smaller = ladder.reduce_once(last) if endings and endings[-1].too_large else last
        decision = None
        if endings:
            end_of_ladder = None if smaller else ladder.explain_end(last, 0)
            backoff = context.settings.retry_backoff_seconds
            decision = decide(endings, spec.failure_policy.retries, backoff, end_of_ladder, suspensions)
        return cls(
            finished=tuple(finished),
            number=finished[-1].number + 1 if finished else 1,
            decision=decision,
            job=context.job.model_copy(update={"spec": smaller or spec}),
            adjustments=tuple(ladder.list_adjustments(spec, smaller or spec)),
        )


def plan_attempts(context: PlanContext, status: JobStatusBuilder) -> Plan:
    """Plan the attempts after the preflight."""
    batch_jobs = context.observed.batch_jobs_of(TRAINER)
    finished, current = split_runs(status.read().attempts)
    following = AttemptContext.after(finished, context, status)
    delete: tuple[Object, ...] = ()
    while True:
        if current is None:
            batch_job = batch_jobs.get(following.number)
            if batch_job is None:
                wait = _plan_wait(following, context, status, delete)
                if wait is not None:
                    return wait
            set_resumed(status)  # also if the status write of the pass that created the Job was lost
            current = begin_run(TRAINER, following.number, context, following.adjustments)
            if batch_job is None:
                return _plan_start(current, following, context, status, delete)
        batch_job = batch_jobs.get(current.number)
        pods = context.observed.pods_of(current.job_name)
        outcome = classify_pod(batch_job, pods, TRAINER, context.observed.warnings)
        halt = find_halt(context.job.spec, find_active_seconds(current, status, context.now), is_suspending(context))
        if halt is not None:
            outcome = end_halted(outcome, halt)
            if not isinstance(outcome, Ended):
                return _plan_stop(current, following, halt, context, status)
        if isinstance(outcome, Waiting) and is_overdue(current, context):
            set_attempts(status, [*following.finished, end_overdue(current, outcome, context)])
            set_attempt_failed(status, current.number, outcome.reason, outcome.message)
            set_never_started(status, TRAINER, outcome, context.job.spec.pending_deadline_seconds)
            return _finish_plan(status, () if batch_job is None else (batch_job,))
        if isinstance(outcome, Waiting) and outcome.is_failing:
            current = update_run(current, failing_since=current.failing_since or format_timestamp(context.now))
            if _find_grace_seconds_left(current, context) <= 0:
                outcome = Ended(outcome.reason, outcome.message)
                delete = (batch_job,) if batch_job is not None else ()
        if not isinstance(outcome, Ended):
            return _plan_continuation(current, following, outcome, context, status)
        attempt, succeeded = _end_attempt(current, outcome, context, status)
        current = None
        set_attempts(status, [*following.finished, attempt])
        if succeeded:
            return _finish_plan(status, delete)
        following = AttemptContext.after([*following.finished, attempt], context, status)
        if isinstance(following.decision, GiveUp):
            set_given_up(status, attempt, attempt.reason or Reason.TRAINER_ERROR, following.decision.why)
            return _finish_plan(status, delete if halt is None else find_unfinished_jobs(context.observed))
        if attempt.reason != Reason.SUSPENDED:
            add_attempt_failed_event(status, attempt, following.adjustments)


def _plan_wait(
    following: AttemptContext, context: PlanContext, status: JobStatusBuilder, delete: tuple[Object, ...]
) -> Plan | None:
    """Plan the wait for the next attempt; return None when it may begin."""
    set_attempts(status, following.finished)
    blocking = find_blocking(context.observed, following.number)
    halt = find_halt(context.job.spec, find_active_seconds(None, status, context.now), is_suspending=False)
    if halt is not None:
        set_halted(status, halt, blocking)
        return _finish_plan(status, find_unfinished_jobs(context.observed))
    set_resumed(status)
    # A budget that was used up may have grown since: then, as at the beginning, the next attempt is due now.
    due = following.decision.at if isinstance(following.decision, RetryAt) else context.now
    if not blocking and due <= context.now:
        return None
    last = following.finished[-1] if following.finished else None
    if last is not None and last.reason != Reason.SUSPENDED:
        set_retrying(status, last, following.adjustments)
    if due > context.now:
        return _finish_plan(status, delete, requeue_after=(due - context.now).total_seconds())
    ended = parse_timestamp(last.finished_at or "") if last is not None else context.now
    patience = PATIENCE_SECONDS - (context.now - ended).total_seconds()
    if patience <= 0 or last is None or last.reason == Reason.SUSPENDED:
        set_waiting_for(status, following.number, blocking)
    # A Job that somebody suspended does not end by itself: its pod would come back beside the next attempt's.
    delete += tuple(job for job in find_unfinished_jobs(context.observed) if is_suspended(job) and job not in delete)
    return _finish_plan(status, delete, requeue_after=patience if patience > 0 else None)


def _plan_stop(
    attempt: Attempt, following: AttemptContext, halt: Halt, context: PlanContext, status: JobStatusBuilder
) -> Plan:
    """Plan that a pod is asked to end: its Job is deleted, because a suspended one may be resumed by others."""
    set_attempts(status, [*following.finished, attempt])
    set_stopping(status, halt, attempt.number)
    return _finish_plan(status, find_unfinished_jobs(context.observed))


def _plan_start(
    attempt: Attempt,
    following: AttemptContext,
    context: PlanContext,
    status: JobStatusBuilder,
    delete: tuple[Object, ...],
) -> Plan:
    """Plan the Job of a new attempt."""
    set_attempts(status, [*following.finished, attempt])
    set_starting(status, attempt.number, Waiting(Reason.PENDING, "The pod is starting."))
    create = build_trainer_job(
        context.observed.resource,
        following.job,
        attempt.number,
        ResolvedModel(status.read().model_revision, status.read().cached_model),
        context.settings,
        [change.to_json() for change in following.adjustments],
        _list_bad_nodes(following.finished),
    )
    return _finish_plan(status, delete, create=create)


def _plan_continuation(
    attempt: Attempt, following: AttemptContext, outcome: Outcome, context: PlanContext, status: JobStatusBuilder
) -> Plan:
    """Plan nothing but the status while an attempt waits, runs or stops."""
    requeue_after = math.inf
    if isinstance(outcome, Waiting):
        attempt = add_active_seconds(attempt, None, status, context.now)
        words, requeue_after = find_next_word(outcome, attempt, context)
        set_starting(status, attempt.number, words)
        if outcome.is_failing:
            requeue_after = min(requeue_after, _find_grace_seconds_left(attempt, context))
    elif isinstance(outcome, Running):
        attempt = update_run(attempt, running_since=attempt.running_since or format_timestamp(context.now))
        requeue_after = _find_active_seconds_left(attempt, context, status)
        report = context.observed.progress_reports.get(attempt.job_name)
        set_running(status, attempt.number, outcome.pod, report)
        if outcome.lost:
            set_node_lost(status, attempt.number, outcome.pod)
        if report is not None:
            attempt = update_run(attempt, resumed_from_step=report.resumed_from_step)
    set_attempts(status, [*following.finished, attempt])
    return _finish_plan(status, requeue_after=requeue_after if requeue_after < math.inf else None)


def _end_attempt(
    attempt: Attempt, outcome: Ended, context: PlanContext, status: JobStatusBuilder
) -> tuple[Attempt, bool]:
    """Return the attempt as it ended, and whether it made the adapter."""
    result = outcome.result if isinstance(outcome.result, TrainerResult) else None
    reason, message = outcome.reason, outcome.message
    if reason is None and (result is None or result.adapter is None):
        reason, message = Reason.TRAINER_ERROR, "The trainer ended well but named no adapter."
    text = message or (result.message if result else "")
    attempt = add_active_seconds(attempt, outcome.seconds, status, context.now)
    if reason is Reason.SUSPENDED:
        status.set(FineTuneJobStatus(suspensions=(status.read().suspensions or 0) + 1))
    if result is not None:
        set_trainer_result(status, result)
        attempt = update_run(attempt, resumed_from_step=result.resumed_from_step)
    if reason is None and result is not None:
        set_succeeded(status, attempt.number, result)
    else:
        set_attempt_failed(status, attempt.number, reason or Reason.TRAINER_ERROR, message)
    return end_run(attempt, outcome, reason or SUCCEEDED, text, context.now), reason is None


def _finish_plan(
    status: JobStatusBuilder,
    delete: tuple[Object, ...] = (),
    create: Object | None = None,
    requeue_after: float | None = None,
) -> Plan:
    return Plan(status.as_json(), delete, create, tuple(status.events), requeue_after)


def _find_active_seconds_left(attempt: Attempt, context: PlanContext, status: JobStatusBuilder) -> float:
    """Find for how many seconds the trainers may still run, by spec.activeDeadlineSeconds."""
    limit = context.job.spec.active_deadline_seconds
    return math.inf if limit is None else limit - find_active_seconds(attempt, status, context.now)


def _find_grace_seconds_left(attempt: Attempt, context: PlanContext) -> float:
    """Find for how many seconds a container may still fail to start."""
    since = parse_timestamp(attempt.failing_since or format_timestamp(context.now))
    return context.settings.image_pull_grace_seconds - (context.now - since).total_seconds()


def _list_bad_nodes(finished: Sequence[Attempt]) -> list[str]:
    """List the nodes on which the last attempts failed for a reason of the node's, the newest first."""
    names = [attempt.node_name for attempt in reversed(finished) if read_reason(attempt) in NODE_REASONS]
    return list(dict.fromkeys(name for name in names if name))[:MAX_AVOIDED_NODES]
