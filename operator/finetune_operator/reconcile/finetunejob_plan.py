"""The plan for a FineTuneJob: (what was observed, now) → what is to be done. No clock, no I/O, no randomness."""

from datetime import datetime

from pydantic import ValidationError

from finetune_api.conditions import ConditionType
from finetune_api.finetunejob import FineTuneJob
from finetune_api.messages import PreflightResult
from finetune_api.reasons import Reason
from finetune_api.validation import problems
from finetune_operator.conditions import find
from finetune_operator.reconcile.draft import Draft
from finetune_operator.reconcile.finetunejob_attempts import World, plan_attempts
from finetune_operator.reconcile.finetunejob_preflight import plan_preflight
from finetune_operator.reconcile.finished import is_finished
from finetune_operator.reconcile.model import Observed, Plan
from finetune_operator.settings import Settings

REMOTE_CODE = (
    "spec.model.trustRemoteCode: code that a model brings is not run in this cluster: choose a model that transformers knows, or ask the administrator "
    "to set the chart value trainer.allowRemoteCode"
)


def plan(observed: Observed, now: datetime, settings: Settings) -> Plan:
    """Decide on one pass. A finished job is never run again; only its observedGeneration follows."""
    item = observed.item
    draft = Draft.of(item, now)
    if is_finished(item):
        return Plan(draft.as_json())
    try:
        job = FineTuneJob.of(item)
    except ValidationError as error:
        return _invalid(draft, "; ".join(str(problem) for problem in problems(error)))
    if job.spec.model.trust_remote_code and not settings.allow_remote_code:
        return _invalid(draft, REMOTE_CODE)
    draft.conditions.set(ConditionType.ACCEPTED, "True", Reason.ACCEPTED, "The spec is valid.")
    revision = None
    passed = find(item.get("status", {}).get("conditions", []), ConditionType.PREFLIGHT_PASSED)
    if passed is None or passed["status"] != "True":
        found = plan_preflight(observed, job, draft, now, settings)
        if not isinstance(found, PreflightResult):
            return found
        draft.take_preflight(found)
        revision = found.model_revision
        draft.conditions.set(ConditionType.PREFLIGHT_PASSED, "True", Reason.PREFLIGHT_PASSED, _passed(found))
    return plan_attempts(World(observed, job, revision, now, settings), draft)


def refused(observed: Observed, now: datetime, message: str) -> Plan:
    """The API server does not accept what the spec makes of a Job (a quantity or a label that is none): the spec is invalid."""
    draft = Draft.of(observed.item, now)
    draft.conditions.set(ConditionType.ACCEPTED, "False", Reason.SPEC_INVALID, message)
    draft.fail(Reason.SPEC_INVALID, message, "SpecInvalid")
    return Plan(draft.as_json(), notes=tuple(draft.notes))


def blocked(observed: Observed, now: datetime, message: str) -> Plan:
    """A Job cannot be created now, for a reason outside of the spec: say so, and try again."""
    draft = Draft.of(observed.item, now)
    draft.phase(draft.fields.get("phase", "Pending"), Reason.PENDING, message)
    return Plan(draft.as_json())


def _invalid(draft: Draft, message: str) -> Plan:
    """Not a loop: nothing happens until the spec changes."""
    draft.fields["phase"] = "Failed"
    draft.conditions.set(ConditionType.ACCEPTED, "False", Reason.SPEC_INVALID, message)
    draft.conditions.stalled(Reason.SPEC_INVALID, message)
    return Plan(draft.as_json())


def _passed(result: PreflightResult) -> str:
    if result.estimate is None:
        return "Model, dataset and output are usable."
    trainable, total = result.estimate.trainable_parameters, result.estimate.total_parameters
    return f"Model, dataset and output are usable; {trainable:,} of {total:,} parameters will be trained."
