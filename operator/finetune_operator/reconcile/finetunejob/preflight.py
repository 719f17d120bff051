"""Plan the preflight. Before it has passed, no pod requests a GPU. Pure."""

import math

from finetune_api.finetunejob import Attempt, PodTemplate, Resources
from finetune_api.messages import PreflightResult
from finetune_api.reasons import Reason
from finetune_api.timestamps import parse_timestamp
from finetune_operator.kube.kinds import Object
from finetune_operator.policies.halt import find_halt
from finetune_operator.policies.outcome import SUCCEEDED, Ended, Outcome, classify_pod
from finetune_operator.policies.preflight_reuse import find_earlier_preflight
from finetune_operator.policies.retry import Ending, GiveUp, decide
from finetune_operator.policies.waiting import Waiting
from finetune_operator.reconcile.finetunejob.model import JobStatusBuilder, Plan, PlanContext
from finetune_operator.reconcile.finetunejob.runs import (
    begin_run,
    end_halted,
    end_overdue,
    end_run,
    find_next_word,
    find_unfinished_jobs,
    is_overdue,
    is_suspending,
    read_reason,
    split_runs,
)
from finetune_operator.reconcile.finetunejob.status import (
    set_halted,
    set_never_started,
    set_preflight_failed,
    set_preflight_passed,
    set_preflight_progress,
    set_preflight_repeated,
    set_preflight_reused,
    set_preflights,
    set_resumed,
    set_suspending,
)
from finetune_operator.resources.jobs import ResolvedModel, build_preflight_job, build_trainer_job
from finetune_operator.resources.names import PREFLIGHT


def plan_preflight(context: PlanContext, status: JobStatusBuilder) -> Plan | None:
    """Plan the preflight's Job; return None once it has passed. Another job's with the same checks also counts."""
    batch_jobs = context.observed.batch_jobs_of(PREFLIGHT)
    finished, current = split_runs(status.read().preflights)
    message = (finished[-1].message or "") if finished else ""
    while True:
        if current is None:
            wait = _plan_wait(context, status, finished, message)
            if wait is not None:
                return wait
            candidates = () if finished or batch_jobs else context.observed.jobs_with_same_checks
            earlier = find_earlier_preflight(candidates, context.now, context.settings.preflight_reuse_seconds)
            if earlier is not None:
                set_preflight_reused(status, earlier)
                return None
            current = begin_run(PREFLIGHT, finished[-1].number + 1 if finished else 1, context)
            set_preflights(status, [*finished, current])
            if current.number not in batch_jobs:
                set_preflight_progress(status, None)
                job = build_preflight_job(context.observed.resource, context.job, current.number, context.settings)
                return Plan(status.as_json(), create=job, rehearsal=_build_rehearsal(context))
        pods = context.observed.pods_of(current.job_name)
        batch_job = batch_jobs.get(current.number)
        outcome = classify_pod(batch_job, pods, PREFLIGHT, context.observed.warnings)
        halt = find_halt(context.job.spec, 0, is_suspending(context))
        if halt is not None:
            outcome = end_halted(outcome, halt)
            if not isinstance(outcome, Ended):
                set_suspending(status, f"{halt.message} The preflight ends.")
                return Plan(status.as_json(), find_unfinished_jobs(context.observed))
        if isinstance(outcome, Waiting) and is_overdue(current, outcome, context):
            set_preflights(status, [*finished, end_overdue(current, outcome, context)])
            set_never_started(status, PREFLIGHT, outcome, context.job.spec.pending_deadline_seconds)
            delete = () if batch_job is None else (batch_job,)
            return Plan(status.as_json(), delete, events=tuple(status.events))
        if not isinstance(outcome, Ended):
            return _plan_continuation(context, status, current, outcome)
        reason, message = _find_reason(outcome)
        finished = [*finished, end_run(current, outcome, reason or SUCCEEDED, message, context.now)]
        current = None
        set_preflights(status, finished)
        if reason is None and isinstance(outcome.result, PreflightResult):
            set_preflight_passed(status, outcome.result)
            return None


def _plan_continuation(context: PlanContext, status: JobStatusBuilder, run: Attempt, outcome: Outcome) -> Plan:
    """Plan nothing but the status while the preflight waits or runs."""
    look = math.inf
    if isinstance(outcome, Waiting):
        outcome, look = find_next_word(outcome, run, context)
    set_preflight_progress(status, outcome)
    return Plan(status.as_json(), requeue_after=look if look < math.inf else None)


def _plan_wait(context: PlanContext, status: JobStatusBuilder, finished: list[Attempt], message: str) -> Plan | None:
    """Plan the end or the pause after a preflight that did not pass; return None when the next is due."""
    halt = find_halt(context.job.spec, 0, is_suspending=False)
    if halt is not None:
        set_halted(status, halt, [])
        return Plan(status.as_json(), find_unfinished_jobs(context.observed))
    set_resumed(status)
    if not finished:
        return None
    reason = finished[-1].reason or Reason.PREFLIGHT_ERROR
    endings = [Ending(run.number, read_reason(run), parse_timestamp(run.finished_at or "")) for run in finished]
    decision = decide(
        endings,
        context.job.spec.failure_policy.retries,
        context.settings.retry_backoff_seconds,
        suspensions=sum(ending.reason is Reason.SUSPENDED for ending in endings),
    )
    if isinstance(decision, GiveUp):
        set_preflight_failed(status, reason, message, decision.why)
        return Plan(status.as_json(), events=tuple(status.events))
    wait = (decision.at - context.now).total_seconds()
    if reason != Reason.SUSPENDED:
        set_preflight_repeated(status, reason, message)
    return Plan(status.as_json(), requeue_after=wait) if wait > 0 else None


def _find_reason(outcome: Ended) -> tuple[str | None, str]:
    """Find why a preflight ended; None if it passed."""
    if outcome.reason is None and isinstance(outcome.result, PreflightResult):
        return None, ""
    if outcome.reason is None or outcome.reason is Reason.TRAINER_ERROR:
        return Reason.PREFLIGHT_ERROR, outcome.message or "it ended without a result"
    return outcome.reason, outcome.message


def _build_rehearsal(context: PlanContext) -> Object | None:
    """Build the trainer's Job, if the spec has settings for its pod, to find errors before the preflight."""
    spec = context.job.spec
    if spec.pod_template == PodTemplate() and spec.resources == Resources():
        return None
    return build_trainer_job(context.observed.resource, context.job, 1, ResolvedModel(), context.settings, [])
