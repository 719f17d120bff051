"""Plan the preflight: nothing that asks for a GPU exists before it has passed. Pure."""

import math

from finetune_api.messages import PreflightResult
from finetune_api.reasons import Reason
from finetune_operator.policies.outcome import Ended, classify_pod
from finetune_operator.policies.retry import Ending, GiveUp, decide
from finetune_operator.reconcile.finetunejob.model import JobStatusBuilder, Plan, PlanContext
from finetune_operator.reconcile.finetunejob.status import (
    set_preflight_failed,
    set_preflight_progress,
    set_preflight_repeated,
)
from finetune_operator.resources.jobs import build_preflight_job
from finetune_operator.resources.names import PREFLIGHT


def plan_preflight(context: PlanContext, status: JobStatusBuilder) -> Plan | PreflightResult:
    """Plan the preflight's Job; return the result of the preflight instead once it has passed."""
    observed = context.observed
    endings: list[Ending] = []
    message = ""
    for number, batch_job in enumerate(observed.batch_jobs_of(PREFLIGHT).values(), start=1):
        # A preflight that waits for its image costs no GPU, so it waits until somebody repairs image or credentials.
        pods = observed.pods_of(batch_job["metadata"]["name"])
        outcome = classify_pod(batch_job, pods, PREFLIGHT, context.now, pull_grace=math.inf)
        if not isinstance(outcome, Ended):
            set_preflight_progress(status, outcome)
            return Plan(status.as_json())
        if outcome.reason is None and isinstance(outcome.result, PreflightResult):
            return outcome.result
        reason, message = _find_reason(outcome)
        endings.append(Ending(number, reason, outcome.at))
    if endings:
        return _plan_repetition(context, status, endings, message)
    set_preflight_progress(status, None)
    return Plan(status.as_json(), create=build_preflight_job(observed.resource, context.job, 1, context.settings))


def _plan_repetition(context: PlanContext, status: JobStatusBuilder, endings: list[Ending], message: str) -> Plan:
    """Plan what follows a preflight that has not passed: repeat it now, wait, or give up."""
    reason = endings[-1].reason
    decision = decide(endings, context.job.spec.failure_policy.retries, context.settings.retry_backoff_seconds)
    if isinstance(decision, GiveUp):
        set_preflight_failed(status, reason, message, decision.why)
        return Plan(status.as_json(), events=tuple(status.events))
    set_preflight_repeated(status, reason, message)
    wait = (decision.at - context.now).total_seconds()
    if wait > 0:
        return Plan(status.as_json(), requeue_after=wait)
    number = len(endings) + 1
    return Plan(
        status.as_json(), create=build_preflight_job(context.observed.resource, context.job, number, context.settings)
    )


def _find_reason(outcome: Ended) -> tuple[str, str]:
    if outcome.reason is None or outcome.reason is Reason.TRAINER_ERROR:
        return Reason.PREFLIGHT_ERROR, outcome.message or "it ended without a result"
    return outcome.reason, outcome.message
