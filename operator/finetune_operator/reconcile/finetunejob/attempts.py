"""Plan the attempts: one trainer pod at a time. Pure.

The reason that ended an attempt decides what follows it. The Job replaces a pod that the cluster took away; a new Job
is created where its spec changes, where a pause or another node is due, and where the old one is gone.
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
from finetune_operator.policies.batch_job import is_suspended, list_edits, may_still_run
from finetune_operator.policies.disruption import is_replaced
from finetune_operator.policies.halt import Halt, find_halt
from finetune_operator.policies.outcome import SUCCEEDED, Ended, Outcome, Running, classify_run
from finetune_operator.policies.retry import Ending, GiveUp, RetryAt, decide
from finetune_operator.policies.waiting import Waiting
from finetune_operator.reconcile.finetunejob.merge_status import set_merge_due
from finetune_operator.reconcile.finetunejob.model import JobStatusBuilder, Plan, PlanContext
from finetune_operator.reconcile.finetunejob.runs import (
    CONTINUED,
    add_active_seconds,
    add_pod,
    begin_run,
    begin_waiting,
    end_halted,
    end_overdue,
    end_run,
    find_active_seconds,
    find_blocking,
    find_job_number,
    find_next_word,
    find_pod,
    find_unfinished_jobs,
    is_overdue,
    is_suspending,
    is_without_job,
    read_reason,
    split_runs,
    update_run,
)
from finetune_operator.reconcile.finetunejob.status import (
    add_attempt_failed_event,
    set_attempt_failed,
    set_attempts,
    set_edited,
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
from finetune_operator.resources.names import TRAINER, read_number

MAX_AVOIDED_NODES = 5
PATIENCE_SECONDS = 5.0
"""For how long the status does not mention a Job whose attempt has ended but which is not complete yet."""


@dataclass(frozen=True)
class AttemptContext:
    """What follows the finished attempts.

    ``decision`` is None before the first attempt. ``job`` is the FineTuneJob with the spec of the next attempt, and
    ``adjustments`` are its differences from the user's spec, completed by what the trainer chose.
    """

    finished: tuple[Attempt, ...]
    number: int
    decision: RetryAt | GiveUp | None
    job: FineTuneJob
    adjustments: tuple[Adjustment, ...]

    @classmethod
    def after(cls, finished: Sequence[Attempt], context: PlanContext, status: JobStatusBuilder) -> "AttemptContext":
        """Compute what follows these attempts, given in their order."""
        choice = status.read().training_choice
        spec = choice.complete(context.job.spec) if choice else context.job.spec
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
        # Earlier reductions stay: a changed failurePolicy affects the following steps only.
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
        if current is not None and is_without_job(
            current, following.finished, batch_jobs, context.observed.pods_of(current.job_name)
        ):
            current = None
        if current is None:
            number = find_job_number(following.finished, context.observed, delete)
            batch_job = batch_jobs.get(number)
            if batch_job is None:
                wait = _plan_wait(following, number, context, status, delete)
                if wait is not None:
                    return wait
            set_resumed(status)  # needed also if the pass that created the Job lost its status write
            current = begin_run(TRAINER, following.number, context, following.adjustments, job_number=number)
            if batch_job is None:
                return _plan_start(current, number, following, context, status, delete)
        batch_job = batch_jobs.get(read_number(current.job_name))
        pod = find_pod(current, following.finished, context.observed.pods_of(current.job_name))
        current, outcome = _observe(current, following, batch_job, pod, context)
        halt = find_halt(context.job.spec, find_active_seconds(current, status, context.now), is_suspending(context))
        if halt is not None:
            outcome = end_halted(outcome, halt)
            delete = find_unfinished_jobs(context.observed)
            if not isinstance(outcome, Ended):
                return _plan_stop(current, following, halt, context, status)
        if isinstance(outcome, Waiting) and is_overdue(current, outcome, context):
            return _plan_overdue(current, following, outcome, batch_job, context, status)
        if isinstance(outcome, Waiting) and outcome.is_failing:
            current = update_run(current, failing_since=current.failing_since or format_timestamp(context.now))
            if _find_grace_seconds_left(current, context) <= 0:
                outcome = Ended(outcome.reason, outcome.message)
                delete = (batch_job,) if batch_job is not None else ()
        is_edited = batch_job is not None and may_still_run(batch_job) and bool(list_edits(batch_job))
        if not isinstance(outcome, Ended):
            plan = _plan_continuation(current, following, outcome, context, status)
            return _plan_removal(plan, batch_job, current, status) if batch_job is not None and is_edited else plan
        attempt, succeeded = _end_attempt(current, outcome, context, status)
        current = None
        set_attempts(status, [*following.finished, attempt])
        following = AttemptContext.after([*following.finished, attempt], context, status)
        is_over = succeeded or isinstance(following.decision, GiveUp)
        if batch_job is not None and _would_go_on(batch_job, attempt, pod, is_over=is_over):
            delete = tuple({job["metadata"]["name"]: job for job in (*delete, batch_job)}.values())
        if succeeded:
            set_merge_due(status, context.job.spec)
            # Begin the merge at once: the Job may have ended before this pass, and then no event follows.
            return _finish_plan(status, delete, requeue_after=0 if context.job.spec.output.merged_model else None)
        if isinstance(following.decision, GiveUp):
            set_given_up(status, attempt, attempt.reason or Reason.TRAINER_ERROR, following.decision.why)
            return _finish_plan(status, delete)
        if attempt.reason != Reason.SUSPENDED:
            add_attempt_failed_event(status, attempt, following.adjustments)


def _observe(
    attempt: Attempt, following: AttemptContext, batch_job: Object | None, pod: Object | None, context: PlanContext
) -> tuple[Attempt, Outcome]:
    """Return the attempt with its pod recorded, and the outcome that its Job and pod show."""
    outcome = classify_run(
        batch_job,
        pod,
        TRAINER,
        context.observed.warnings,
        has_run=attempt.pod_uid is not None,
        is_replacement=bool(following.finished) and following.finished[-1].job_name == attempt.job_name,
    )
    if isinstance(outcome, Waiting):
        return begin_waiting(attempt, outcome, context), outcome
    return (add_pod(attempt, pod) if isinstance(outcome, Running | Ended) else attempt), outcome


def _plan_overdue(
    attempt: Attempt,
    following: AttemptContext,
    waiting: Waiting,
    batch_job: Object | None,
    context: PlanContext,
    status: JobStatusBuilder,
) -> Plan:
    """Plan the end of a job whose pod has waited for longer than its deadline."""
    set_attempts(status, [*following.finished, end_overdue(attempt, waiting, context)])
    set_attempt_failed(status, attempt.number, waiting.reason, waiting.message)
    set_never_started(status, TRAINER, waiting, context.job.spec.pending_deadline_seconds)
    return _finish_plan(status, () if batch_job is None else (batch_job,))


def _plan_removal(plan: Plan, batch_job: Object, attempt: Attempt, status: JobStatusBuilder) -> Plan:
    """Plan the deletion of a Job that somebody changed. It may repeat what failed, or run several pods."""
    set_edited(status, batch_job, attempt.number)
    return _finish_plan(status, (batch_job,), requeue_after=plan.requeue_after)


def _would_go_on(batch_job: Object, attempt: Attempt, pod: Object | None, *, is_over: bool) -> bool:
    """Return whether a Job would make another pod though no attempt of it follows the one that has ended."""
    if not may_still_run(batch_job):
        return False
    if attempt.reason in CONTINUED:
        return is_over
    return bool(list_edits(batch_job)) or (pod is not None and is_replaced(pod, TRAINER))


def _plan_wait(
    following: AttemptContext, number: int, context: PlanContext, status: JobStatusBuilder, delete: tuple[Object, ...]
) -> Plan | None:
    """Plan the wait for the next attempt, in the Job of this number; return None when it may begin."""
    set_attempts(status, following.finished)
    blocking = find_blocking(context.observed, number)
    halt = find_halt(context.job.spec, find_active_seconds(None, status, context.now), is_suspending=False)
    if halt is not None:
        set_halted(status, halt, blocking)
        return _finish_plan(status, find_unfinished_jobs(context.observed))
    set_resumed(status)
    # The budget may have grown since it was used up: then, as before the first attempt, the next one is due now.
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
    # A Job that somebody suspended does not end by itself: its pod could come back while the next attempt runs.
    delete += tuple(job for job in find_unfinished_jobs(context.observed) if is_suspended(job) and job not in delete)
    return _finish_plan(status, delete, requeue_after=patience if patience > 0 else None)


def _plan_stop(
    attempt: Attempt, following: AttemptContext, halt: Halt, context: PlanContext, status: JobStatusBuilder
) -> Plan:
    """Plan the end of a running pod: its Job is deleted, because others may resume a suspended one."""
    set_attempts(status, [*following.finished, attempt])
    set_stopping(status, halt, attempt.number)
    return _finish_plan(status, find_unfinished_jobs(context.observed))


def _plan_start(
    attempt: Attempt,
    number: int,
    following: AttemptContext,
    context: PlanContext,
    status: JobStatusBuilder,
    delete: tuple[Object, ...],
) -> Plan:
    """Plan the Job of this number, in which a new attempt begins."""
    set_attempts(status, [*following.finished, attempt])
    set_starting(status, attempt.number, Waiting(Reason.PENDING, "The pod is starting."))
    create = build_trainer_job(
        context.observed.resource,
        following.job,
        number,
        ResolvedModel(status.read().model_revision, status.read().cached_model),
        context.settings,
        [change.to_json() for change in following.adjustments],
        _list_bad_nodes(following.finished),
        status.read().training_choice,
    )
    return _finish_plan(status, delete, create=create)


def _plan_continuation(
    attempt: Attempt, following: AttemptContext, outcome: Outcome, context: PlanContext, status: JobStatusBuilder
) -> Plan:
    """Plan nothing but the status while an attempt waits, runs or stops."""
    requeue_after = math.inf
    if isinstance(outcome, Waiting):
        attempt = add_active_seconds(attempt, None, status, context.now)
        explained, requeue_after = find_next_word(outcome, attempt, context)
        set_starting(status, attempt.number, explained)
        if outcome.is_failing:
            requeue_after = min(requeue_after, _find_grace_seconds_left(attempt, context))
    elif isinstance(outcome, Running):
        attempt = update_run(attempt, running_since=attempt.running_since or format_timestamp(context.now))
        requeue_after = _find_active_seconds_left(attempt, context, status)
        report = context.observed.progress_reports.get(outcome.pod["metadata"]["uid"])
        set_running(status, attempt.number, outcome.pod, report)
        if outcome.lost:
            set_node_lost(status, attempt.number, outcome.pod)
        if report is not None:
            if report.training_choice is not None:
                status.set(FineTuneJobStatus(training_choice=report.training_choice))
            attempt = update_run(attempt, resumed_from_step=report.resumed_from_step, adjustments=report.adjustments)
    set_attempts(status, [*following.finished, attempt])
    return _finish_plan(status, requeue_after=requeue_after if requeue_after < math.inf else None)


def _end_attempt(
    attempt: Attempt, outcome: Ended, context: PlanContext, status: JobStatusBuilder
) -> tuple[Attempt, bool]:
    """Return the attempt as it ended, and whether it made the adapter."""
    result = outcome.result if isinstance(outcome.result, TrainerResult) else None
    reason, message = outcome.reason, outcome.message
    if reason is None and (result is None or result.adapter is None):
        reason, message = Reason.TRAINER_ERROR, "The trainer succeeded but reported no adapter."
    text = message or (result.message if result else "")
    attempt = add_active_seconds(attempt, outcome.seconds, status, context.now)
    if reason is Reason.SUSPENDED:
        status.set(FineTuneJobStatus(suspensions=(status.read().suspensions or 0) + 1))
    if result is not None:
        set_trainer_result(status, result)
        attempt = update_run(attempt, resumed_from_step=result.resumed_from_step, adjustments=result.adjustments)
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
    """List the nodes on which attempts failed because of the node, the newest first."""
    names = [attempt.node_name for attempt in reversed(finished) if read_reason(attempt) in NODE_REASONS]
    return list(dict.fromkeys(name for name in names if name))[:MAX_AVOIDED_NODES]
