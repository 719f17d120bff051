"""Plan the merge of a finished adapter into its base: one Job without a GPU at a time. Pure.

The FineTuneJob has succeeded by then, and nothing here changes that.
"""

import math

from finetune_api.finetunejob import Attempt
from finetune_api.messages import MergeResult
from finetune_api.reasons import Reason
from finetune_api.timestamps import parse_timestamp
from finetune_operator.kube.kinds import Object
from finetune_operator.policies.halt import find_halt
from finetune_operator.policies.merge_memory import find_merge_bytes
from finetune_operator.policies.outcome import SUCCEEDED, Ended, Outcome, classify_pod
from finetune_operator.policies.retry import Ending, GiveUp, decide
from finetune_operator.policies.waiting import Waiting
from finetune_operator.reconcile.finetunejob.merge_status import (
    set_merge_failed,
    set_merge_progress,
    set_merge_repeated,
    set_merge_suspended,
    set_merged,
    set_merges,
)
from finetune_operator.reconcile.finetunejob.model import JobStatusBuilder, Plan, PlanContext
from finetune_operator.reconcile.finetunejob.runs import (
    begin_run,
    end_halted,
    end_overdue,
    end_run,
    find_next_word,
    find_role,
    find_unfinished_jobs,
    is_overdue,
    read_reason,
    split_runs,
)
from finetune_operator.resources.jobs import ResolvedModel, build_merge_job
from finetune_operator.resources.names import MERGE

MORE_MEMORY = (
    "The merge used more memory than its limit: raise spec.resources.merge.limits.memory, and then "
    "spec.failurePolicy.retries.onError for another try."
)


def plan_merge(context: PlanContext, status: JobStatusBuilder) -> Plan | None:
    """Plan the merge's Job; return None once there is a merged model, or another merge would fail as well."""
    batch_jobs = context.observed.batch_jobs_of(MERGE)
    finished, current = split_runs(status.read().merges)
    while True:
        if current is None:
            number = finished[-1].number + 1 if finished else 1
            if number not in batch_jobs:
                return _plan_next(context, status, finished, number)
            current = begin_run(MERGE, number, context)  # the pass that created its Job lost its status write
        set_merges(status, [*finished, current])
        pods = context.observed.pods_of(current.job_name)
        outcome = classify_pod(batch_jobs.get(current.number), pods, MERGE, context.observed.warnings)
        halt = find_halt(context.job.spec, 0, is_suspending=False)
        if halt is not None:
            outcome = end_halted(outcome, halt)
            if not isinstance(outcome, Ended):
                set_merge_suspended(status, halt.message)
                return Plan(status.as_json(), _find_unfinished_merges(context))
        if isinstance(outcome, Waiting) and is_overdue(current, outcome, context):
            set_merges(status, [*finished, end_overdue(current, outcome, context)])
            return Plan(status.as_json(), _find_unfinished_merges(context), requeue_after=0)
        if not isinstance(outcome, Ended):
            return _plan_continuation(context, status, current, outcome)
        result = outcome.result if isinstance(outcome.result, MergeResult) else None
        model = result.merged_model if result is not None and outcome.reason is None else None
        reason, message = (SUCCEEDED, "") if model else _find_reason(outcome)
        finished, current = [*finished, end_run(current, outcome, reason, message, context.now)], None
        set_merges(status, finished)
        if model is not None:
            set_merged(status, model)
            return None


def _find_unfinished_merges(context: PlanContext) -> tuple[Object, ...]:
    return tuple(job for job in find_unfinished_jobs(context.observed) if find_role(job) == MERGE)


def _plan_next(context: PlanContext, status: JobStatusBuilder, finished: list[Attempt], number: int) -> Plan | None:
    """Plan the Job of the next merge, or the wait for it; return None if there is none."""
    wait = _find_wait(context, status, finished)
    if wait is None:
        return None
    halt = find_halt(context.job.spec, 0, is_suspending=False)
    if halt is not None:
        set_merge_suspended(status, halt.message)
        return Plan(status.as_json())
    if wait > 0:
        return Plan(status.as_json(), requeue_after=wait)
    run = begin_run(MERGE, number, context)
    set_merges(status, [*finished, run])
    set_merge_progress(status, None)
    known = status.read()
    base = ResolvedModel(known.model_revision, known.cached_model)
    needed = find_merge_bytes(context.job.spec, known.estimate)
    job = build_merge_job(context.observed.resource, context.job, run.number, base, context.settings, needed)
    return Plan(status.as_json(), create=job)


def _plan_continuation(context: PlanContext, status: JobStatusBuilder, run: Attempt, outcome: Outcome) -> Plan:
    """Plan nothing but the status while a merge waits or runs."""
    look = math.inf
    if isinstance(outcome, Waiting):
        outcome, look = find_next_word(outcome, run, context)
    set_merge_progress(status, outcome)
    return Plan(status.as_json(), requeue_after=look if look < math.inf else None)


def _find_wait(context: PlanContext, status: JobStatusBuilder, finished: list[Attempt]) -> float | None:
    """Find for how many seconds the next merge waits; None if there is none."""
    if not finished:
        return 0
    endings = [Ending(run.number, read_reason(run), parse_timestamp(run.finished_at or "")) for run in finished]
    suspensions = sum(ending.reason is Reason.SUSPENDED for ending in endings)
    retries, backoff = context.job.spec.failure_policy.retries, context.settings.retry_backoff_seconds
    decision = decide(endings, retries, backoff, suspensions=suspensions)
    reason, message = finished[-1].reason or Reason.MERGE_FAILED, finished[-1].message or ""
    if isinstance(decision, GiveUp):
        set_merge_failed(status, reason, message, decision.why)
        return None
    if reason != Reason.SUSPENDED:
        set_merge_repeated(status, reason, message)
    return max((decision.at - context.now).total_seconds(), 0)


def _find_reason(outcome: Ended) -> tuple[str, str]:
    """Find why a merge ended without a merged model."""
    if outcome.reason is Reason.HOST_OUT_OF_MEMORY:
        return outcome.reason, MORE_MEMORY
    if outcome.reason is None or outcome.reason is Reason.TRAINER_ERROR:
        return Reason.MERGE_FAILED, outcome.message or "it ended without a result"
    return outcome.reason, outcome.message
