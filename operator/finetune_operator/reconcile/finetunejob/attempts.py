"""Plan the attempts: one trainer Job at a time. Pure.

The reason that ended an attempt decides what follows it.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from finetune_api import ladder
from finetune_api.finetunejob import Adjustment, Attempt, FineTuneJob
from finetune_api.limits import ATTEMPT_MESSAGE_CHARACTERS, truncate
from finetune_api.messages import TrainerResult
from finetune_api.reasons import NODE_REASONS, Reason
from finetune_api.timestamps import format_timestamp, parse_timestamp
from finetune_operator.kube.kinds import REVISION_ANNOTATION, Object
from finetune_operator.policies.outcome import Ended, Running, Waiting, classify_pod
from finetune_operator.policies.retry import Ending, GiveUp, RetryAt, decide
from finetune_operator.reconcile.finetunejob.model import JobStatusBuilder, Plan, PlanContext
from finetune_operator.reconcile.finetunejob.status import (
    SUCCEEDED,
    set_attempt_failed,
    set_attempts,
    set_given_up,
    set_retrying,
    set_running,
    set_starting,
    set_succeeded,
    set_trainer_result,
)
from finetune_operator.resources.jobs import build_trainer_job
from finetune_operator.resources.names import TRAINER, job_name

MAX_AVOIDED_NODES = 5
PULL_CHECK_SECONDS = 10.0
"""How often a pod is looked at that cannot pull its image."""


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
    def after(cls, finished: Sequence[Attempt], context: PlanContext) -> "AttemptContext":
        """Compute what follows these attempts, given in their order."""
        spec = context.job.spec
        endings = [
            Ending(
                attempt.number,
                _read_reason(attempt),
                parse_timestamp(attempt.finished_at or ""),
                ladder.needs_less_memory(spec, attempt.reason or ""),
            )
            for attempt in finished
        ]
        steps = sum(ending.too_large for ending in endings)
        smaller = ladder.reduce_memory(spec, steps)
        decision = None
        if endings:
            end_of_ladder = None if smaller else ladder.explain_end(spec, steps)
            backoff = context.settings.retry_backoff_seconds
            decision = decide(endings, spec.failure_policy.retries, backoff, end_of_ladder)
        return cls(
            finished=tuple(finished),
            number=finished[-1].number + 1 if finished else 1,
            decision=decision,
            job=context.job.model_copy(update={"spec": smaller or spec}),
            adjustments=tuple(ladder.list_adjustments(spec, smaller or spec)),
        )


def plan_attempts(context: PlanContext, revision: str | None, status: JobStatusBuilder) -> Plan:
    """Plan the attempts after the preflight.

    ``revision`` is the model's commit, if the preflight passed in this pass.
    """
    batch_jobs = context.observed.batch_jobs_of(TRAINER)
    attempts = status.read().attempts
    current = attempts[-1] if attempts and attempts[-1].finished_at is None else None
    following = AttemptContext.after(attempts if current is None else attempts[:-1], context)
    delete: tuple[Object, ...] = ()
    while True:
        if current is None:
            # A budget that was used up may have grown since: then, as at the beginning, the next attempt is due now.
            due = following.decision.at if isinstance(following.decision, RetryAt) else context.now
            if due > context.now:
                set_attempts(status, following.finished)
                return _finish_plan(status, delete, requeue_after=(due - context.now).total_seconds())
            batch_job = batch_jobs.get(following.number)
            current = _begin_attempt(following, batch_job, context)
            if batch_job is None:
                return _plan_start(current, following, revision, context, status, delete)
        batch_job = batch_jobs.get(current.number)
        pods = context.observed.pods_of(current.job_name)
        outcome = classify_pod(batch_job, pods, TRAINER, context.now, context.settings.image_pull_grace_seconds)
        if not isinstance(outcome, Ended):
            return _plan_continuation(current, following, outcome, context, status)
        attempt, succeeded = _end_attempt(current, outcome, status)
        current = None
        set_attempts(status, [*following.finished, attempt])
        if outcome.reason is Reason.IMAGE_PULL_FAILED and batch_job is not None:
            delete = (batch_job,)
        if succeeded:
            return _finish_plan(status, delete)
        following = AttemptContext.after([*following.finished, attempt], context)
        if isinstance(following.decision, GiveUp):
            set_given_up(status, attempt, attempt.reason or Reason.TRAINER_ERROR, following.decision.why)
            return _finish_plan(status, delete)
        set_retrying(status, attempt, following.adjustments)


def _begin_attempt(following: AttemptContext, batch_job: Object | None, context: PlanContext) -> Attempt:
    """Make a new attempt.

    If its Job exists, because the status write was lost, the attempt began when the Job was created.
    """
    started = batch_job["metadata"]["creationTimestamp"] if batch_job is not None else format_timestamp(context.now)
    return Attempt(
        number=following.number,
        job_name=job_name(context.job.metadata.name, TRAINER, following.number),
        started_at=started,
        adjustments=list(following.adjustments) or None,
    )


def _plan_start(
    attempt: Attempt,
    following: AttemptContext,
    revision: str | None,
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
        revision or _find_revision(context.observed.batch_jobs),
        context.settings,
        [change.to_json() for change in following.adjustments],
        _list_bad_nodes(following.finished),
    )
    return _finish_plan(status, delete, create=create)


def _plan_continuation(
    attempt: Attempt,
    following: AttemptContext,
    outcome: Waiting | Running,
    context: PlanContext,
    status: JobStatusBuilder,
) -> Plan:
    """Plan nothing but the status while an attempt waits or runs."""
    requeue_after = None
    if isinstance(outcome, Waiting):
        set_starting(status, attempt.number, outcome)
        if outcome.reason is Reason.IMAGE_PULL_FAILED:
            requeue_after = PULL_CHECK_SECONDS
    else:
        report = context.observed.progress_reports.get(attempt.job_name)
        set_running(status, attempt.number, outcome.pod, report)
        if report is not None:
            attempt = _replace(attempt, resumed_from_step=report.resumed_from_step)
    set_attempts(status, [*following.finished, attempt])
    return _finish_plan(status, requeue_after=requeue_after)


def _end_attempt(attempt: Attempt, outcome: Ended, status: JobStatusBuilder) -> tuple[Attempt, bool]:
    """Return the attempt as it ended, and whether it made the adapter."""
    result = outcome.result if isinstance(outcome.result, TrainerResult) else None
    reason, message = outcome.reason, outcome.message
    if reason is None and (result is None or result.adapter is None):
        reason, message = Reason.TRAINER_ERROR, "The trainer ended well but named no adapter."
    text = message or (result.message if result else "")
    if result is not None:
        set_trainer_result(status, result)
    if reason is None and result is not None:
        set_succeeded(status, attempt.number, result)
    else:
        set_attempt_failed(status, attempt.number, reason or Reason.TRAINER_ERROR, message)
    ended = _replace(
        attempt,
        finished_at=format_timestamp(outcome.at),
        reason=SUCCEEDED if reason is None else str(reason),
        message=truncate(text, ATTEMPT_MESSAGE_CHARACTERS) or None,
        exit_code=outcome.exit_code,
        node_name=outcome.node,
        resumed_from_step=result.resumed_from_step if result else None,
    )
    return ended, reason is None


def _finish_plan(
    status: JobStatusBuilder,
    delete: tuple[Object, ...] = (),
    create: Object | None = None,
    requeue_after: float | None = None,
) -> Plan:
    return Plan(status.as_json(), delete, create, tuple(status.events), requeue_after)


def _replace(
    attempt: Attempt,
    *,
    finished_at: str | None = None,
    reason: str | None = None,
    message: str | None = None,
    exit_code: int | None = None,
    node_name: str | None = None,
    resumed_from_step: int | None = None,
) -> Attempt:
    """Return the attempt with these values; None keeps what it has."""
    changes = {
        "finished_at": finished_at,
        "reason": reason,
        "message": message,
        "exit_code": exit_code,
        "node_name": node_name,
        "resumed_from_step": resumed_from_step,
    }
    return attempt.model_copy(update={name: value for name, value in changes.items() if value is not None})


def _read_reason(attempt: Attempt) -> Reason:
    """Return the reason of a finished attempt; one that only a newer version knows counts as an error."""
    try:
        return Reason(attempt.reason or "")
    except ValueError:
        return Reason.TRAINER_ERROR


def _list_bad_nodes(finished: Sequence[Attempt]) -> list[str]:
    """List the nodes on which the last attempts failed for a reason of the node's, the newest first."""
    names = [attempt.node_name for attempt in reversed(finished) if _read_reason(attempt) in NODE_REASONS]
    return list(dict.fromkeys(name for name in names if name))[:MAX_AVOIDED_NODES]


def _find_revision(batch_jobs: Sequence[Object]) -> str | None:
    """Find the commit of the model that an earlier attempt was given."""
    for batch_job in batch_jobs:
        revision: str | None = batch_job["metadata"].get("annotations", {}).get(REVISION_ANNOTATION)
        if revision:
            return revision
    return None
