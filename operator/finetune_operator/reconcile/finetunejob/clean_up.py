"""Plan the deletion of a FineTuneJob together with its objects in S3. Pure.

First its pods end, then a clean-up pod deletes the objects. In the end the FineTuneJob is released in any case.
"""

from datetime import datetime

from pydantic import ValidationError

from finetune_api.finetunejob import Attempt, FineTuneJob, FineTuneJobStatus, Retries
from finetune_api.lenient import read_spec
from finetune_api.messages import CleanUpResult
from finetune_api.reasons import Reason
from finetune_api.timestamps import parse_timestamp
from finetune_api.validation import problems
from finetune_operator.event_record import EventRecord
from finetune_operator.kube.kinds import Object
from finetune_operator.policies.deletion import change_finalizers, is_garbage_collected, needs_finalizer
from finetune_operator.policies.outcome import Ended, Outcome, Running, classify_pod
from finetune_operator.policies.pod_state import has_ended, is_on_lost_node
from finetune_operator.policies.retry import Ending, GiveUp, decide
from finetune_operator.policies.waiting import Waiting, find_next_look
from finetune_operator.reconcile.finetunejob.model import JobStatusBuilder, Observed, Plan, PlanContext
from finetune_operator.reconcile.finetunejob.runs import (
    begin_run,
    end_run,
    find_role,
    find_unfinished_jobs,
    read_reason,
    split_runs,
)
from finetune_operator.reconcile.finetunejob.status import (
    describe_deleted_output,
    describe_left_output,
    set_clean_ups,
    set_deleting,
)
from finetune_operator.reconcile.status_builder import StatusBuilder
from finetune_operator.resources.jobs import build_clean_up_job
from finetune_operator.resources.names import CLEAN_UP
from finetune_operator.settings import Settings

RETRIES = Retries(on_error=4, on_preemption=4)
RETAIN_REMEDY = "Set spec.output.deletionPolicy to Retain to delete the job without a clean-up."


def plan_deletion(observed: Observed, now: datetime, settings: Settings) -> Plan:
    """Plan one pass over a FineTuneJob that is deleted and has our finalizer."""
    resource = observed.resource
    status = StatusBuilder(FineTuneJobStatus, resource, now)
    if not needs_finalizer(resource, is_starting=bool(observed.batch_jobs)):
        return _release(resource, status)
    unfinished = tuple(job for job in find_unfinished_jobs(observed) if find_role(job) != CLEAN_UP)
    waits_for = [*(f"Job {job['metadata']['name']}" for job in unfinished), *_list_live_pods(observed)]
    if is_garbage_collected(resource):
        waits_for.append("the garbage collector")
    if waits_for:
        set_deleting(status, f"The clean-up begins when these have ended: {', '.join(waits_for)}. {RETAIN_REMEDY}")
        return Plan(status.as_json(), unfinished)
    try:
        job, _ = read_spec(FineTuneJob, resource)
    except ValidationError as error:
        why = "; ".join(str(problem) for problem in problems(error))
        return _release(resource, status, describe_left_output("S3", Reason.SPEC_INVALID, why))
    return _plan_clean_up(PlanContext(observed, job, now, settings), status)


def plan_blocked_clean_up(
    observed: Observed, now: datetime, settings: Settings, message: str, *, is_final: bool
) -> Plan:
    """Plan what follows when the clean-up's Job cannot be created; ``is_final`` says that it never can."""
    resource = observed.resource
    job, _ = read_spec(FineTuneJob, resource)
    context, status = PlanContext(observed, job, now, settings), StatusBuilder(FineTuneJobStatus, resource, now)
    if is_final:
        return _release_uncleaned(context, status, Reason.CLEAN_UP_FAILED, message)
    finished = status.read().clean_ups
    run = begin_run(CLEAN_UP, _find_number(finished), context)
    ended = Ended(Reason.CLEAN_UP_FAILED, message)
    return _plan_next(context, status, [*finished, end_run(run, ended, Reason.CLEAN_UP_FAILED, message, now)]) or Plan(
        status.as_json(), requeue_after=0
    )


def _plan_clean_up(context: PlanContext, status: JobStatusBuilder) -> Plan:
    """Plan the clean-up's Job, and the release once it has ended."""
    batch_jobs = context.observed.batch_jobs_of(CLEAN_UP)
    finished, current = split_runs(status.read().clean_ups)
    while True:
        if current is None:
            wait = _plan_next(context, status, finished)
            if wait is not None:
                return wait
            current = begin_run(CLEAN_UP, _find_number(finished), context)
            if current.number not in batch_jobs:
                set_clean_ups(status, [*finished, current])
                set_deleting(status, f"A clean-up pod deletes the job's objects in {_find_location(context.job)}.")
                job = build_clean_up_job(context.observed.resource, context.job, current.number, context.settings)
                return Plan(status.as_json(), create=job)
        set_clean_ups(status, [*finished, current])
        pods = context.observed.pods_of(current.job_name)
        outcome = classify_pod(batch_jobs.get(current.number), pods, CLEAN_UP, context.observed.warnings)
        if not isinstance(outcome, Ended):
            seconds = (context.now - parse_timestamp(current.started_at or "")).total_seconds()
            patience = context.settings.clean_up_start_seconds - seconds
            if patience > 0 or (isinstance(outcome, Running) and not outcome.lost):
                return _plan_continuation(context, status, outcome, seconds, patience)
            reason, message = _explain_delay(outcome)
            text = f"Its clean-up has not started for {context.settings.clean_up_start_seconds:.0f} s. {message}"
            return _release_uncleaned(context, status, reason, text)
        if outcome.reason is None and isinstance(outcome.result, CleanUpResult):
            return _release(context.observed.resource, status, describe_deleted_output(outcome.result.message))
        reason, message = _find_reason(outcome)
        finished, current = [*finished, end_run(current, outcome, reason, message, context.now)], None


def _plan_next(context: PlanContext, status: JobStatusBuilder, finished: list[Attempt]) -> Plan | None:
    """Plan the release or the pause after clean-ups that failed; return None when the next one is due."""
    set_clean_ups(status, finished)
    if not finished:
        return None
    endings = [Ending(run.number, read_reason(run), parse_timestamp(run.finished_at or "")) for run in finished]
    decision = decide(endings, RETRIES, context.settings.retry_backoff_seconds)
    last = finished[-1]
    reason, message = last.reason or Reason.CLEAN_UP_FAILED, last.message or ""
    if isinstance(decision, GiveUp):
        return _release_uncleaned(context, status, reason, message)
    set_deleting(status, f"The clean-up failed and is repeated: {reason}: {message} {RETAIN_REMEDY}")
    wait = (decision.at - context.now).total_seconds()
    return Plan(status.as_json(), requeue_after=wait) if wait > 0 else None


def _plan_continuation(
    context: PlanContext, status: JobStatusBuilder, outcome: Outcome, seconds: float, patience: float
) -> Plan:
    """Plan nothing but the status while the clean-up waits or runs."""
    is_running = isinstance(outcome, Running) and not outcome.lost
    if is_running or (isinstance(outcome, Waiting) and outcome.reason is Reason.PENDING):
        set_deleting(status, f"A clean-up pod deletes the job's objects in {_find_location(context.job)}.")
    else:
        reason, message = _explain_delay(outcome)
        set_deleting(status, f"The clean-up does not run: {reason}: {message} {RETAIN_REMEDY}")
    if is_running:
        return Plan(status.as_json())
    look = find_next_look(outcome, seconds) if isinstance(outcome, Waiting) else None
    return Plan(status.as_json(), requeue_after=patience if look is None else min(look, patience))


def _explain_delay(outcome: Outcome) -> tuple[str, str]:
    """Return reason and message for a clean-up that does not run."""
    if isinstance(outcome, Waiting):
        return outcome.reason, outcome.message
    if isinstance(outcome, Running):
        return Reason.NODE_LOST, f"The node of its pod {outcome.pod['metadata']['name']} does not answer."
    return Reason.PREEMPTED, "Its pod is being deleted."


def _find_reason(outcome: Ended) -> tuple[str, str]:
    if outcome.reason is None or outcome.reason is Reason.TRAINER_ERROR:
        return Reason.CLEAN_UP_FAILED, outcome.message or "it ended without a result"
    return outcome.reason, outcome.message


def _release_uncleaned(context: PlanContext, status: JobStatusBuilder, reason: str, message: str) -> Plan:
    """Plan the release of a FineTuneJob whose objects in S3 are left, with an event that says why."""
    event = describe_left_output(_find_location(context.job), reason, message)
    return _release(context.observed.resource, status, event)


def _release(resource: Object, status: JobStatusBuilder, *events: EventRecord) -> Plan:
    return Plan(status.as_json(), events=events, finalizers=change_finalizers(resource, needed=False))


def _find_number(finished: list[Attempt]) -> int:
    return finished[-1].number + 1 if finished else 1


def _find_location(job: FineTuneJob) -> str:
    return f"s3://{job.spec.output.s3.bucket}/{job.prefix}"


def _list_live_pods(observed: Observed) -> list[str]:
    """List the pods that may still write, without those on lost nodes, whose end cannot be observed."""
    pods = [pod for group in observed.pods.values() for pod in group]
    return [
        f"pod {pod['metadata']['name']}"
        for pod in pods
        if find_role(pod) != CLEAN_UP and not has_ended(pod, find_role(pod)) and not is_on_lost_node(pod)
    ]
