"""The preflight's part of the plan: nothing that asks for a GPU exists before it has passed."""

import math
from datetime import datetime

from finetune_api.conditions import ConditionType
from finetune_api.finetunejob import FineTuneJob
from finetune_api.messages import PreflightResult
from finetune_api.reasons import USER_ERRORS, Reason
from finetune_operator.conditions import sentence
from finetune_operator.kube.kinds import ATTEMPT_LABEL, ROLE_LABEL, Object
from finetune_operator.policies.outcome import Ended, Running, Waiting, observe
from finetune_operator.policies.retry import Ending, GiveUp, decide
from finetune_operator.reconcile.draft import Draft
from finetune_operator.reconcile.model import Observed, Plan
from finetune_operator.resources.jobs import preflight_job
from finetune_operator.resources.names import PREFLIGHT
from finetune_operator.settings import Settings

CHECKING = "The preflight checks model, dataset, modules and output; no GPU is asked for before it has passed."


def plan_preflight(
    observed: Observed, job: FineTuneJob, draft: Draft, now: datetime, settings: Settings
) -> Plan | PreflightResult:
    """The plan while the preflight has not passed, or what it found when it has."""
    tries = sorted(
        (child for child in observed.jobs if child["metadata"]["labels"].get(ROLE_LABEL) == PREFLIGHT),
        key=lambda child: int(child["metadata"]["labels"][ATTEMPT_LABEL]),
    )
    endings: list[Ending] = []
    message = ""
    for number, child in enumerate(tries, start=1):
        # Waiting for an image costs no GPU: it ends when somebody mends the image or its credentials.
        outcome = observe(child, observed.pods_of(child["metadata"]["name"]), now, pull_grace=math.inf)
        if not isinstance(outcome, Ended):
            return _go_on(draft, outcome)
        if outcome.reason is None and isinstance(outcome.result, PreflightResult):
            return outcome.result
        reason, message = _why(outcome)
        endings.append(Ending(number, reason, outcome.at))
    if not endings:
        return _go_on(draft, None, create=preflight_job(observed.item, job, 1, settings))
    return _after(observed, job, draft, now, settings, endings, message)


def _after(
    observed: Observed,
    job: FineTuneJob,
    draft: Draft,
    now: datetime,
    settings: Settings,
    endings: list[Ending],
    message: str,
) -> Plan:
    """The newest try has ended without passing: repeat it, wait, or give up."""
    reason = endings[-1].reason
    decision = decide(endings, job.spec.failure_policy.retries, settings.retry_backoff_seconds)
    if isinstance(decision, GiveUp):
        draft.conditions.set(ConditionType.PREFLIGHT_PASSED, "False", reason, message)
        text = message if reason in USER_ERRORS else f"{sentence(message)} Not tried again: {decision.why}."
        draft.fail(reason, text, "PreflightFailed")
        return Plan(draft.as_json(), notes=tuple(draft.notes))
    text = f"The preflight itself failed and is repeated: {reason}: {message}"
    draft.conditions.set(ConditionType.PREFLIGHT_PASSED, "Unknown", Reason.RETRYING, text)
    draft.phase("Preflight", Reason.RETRYING, text)
    wait = (decision.at - now).total_seconds()
    if wait > 0:
        return Plan(draft.as_json(), requeue_after=wait)
    return Plan(draft.as_json(), create=preflight_job(observed.item, job, len(endings) + 1, settings))


def _go_on(draft: Draft, outcome: Waiting | Running | None, create: Object | None = None) -> Plan:
    """It waits or runs. A pod that cannot start says so; one that is merely starting is not worth a status write."""
    stuck = isinstance(outcome, Waiting) and outcome.reason is not Reason.PENDING
    reason = outcome.reason if isinstance(outcome, Waiting) and stuck else Reason.PREFLIGHT_RUNNING
    message = outcome.message if isinstance(outcome, Waiting) and stuck else CHECKING
    draft.conditions.set(ConditionType.PREFLIGHT_PASSED, "Unknown", reason, message)
    draft.phase("Preflight", reason, message)
    return Plan(draft.as_json(), create=create)


def _why(outcome: Ended) -> tuple[Reason, str]:
    if outcome.reason is None or outcome.reason is Reason.TRAINER_ERROR:
        return Reason.PREFLIGHT_ERROR, outcome.message or "it ended without a result"
    return outcome.reason, outcome.message
