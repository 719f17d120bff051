"""Plan a pass over a FineTuneJob. Pure."""

from collections.abc import Iterator
from dataclasses import replace
from datetime import datetime

from pydantic import ValidationError

from finetune_api.conditions import ConditionType
from finetune_api.finetunejob import FineTuneJob, FineTuneJobStatus
from finetune_api.lenient import read_spec
from finetune_api.reasons import Reason
from finetune_api.validation import problems
from finetune_operator.conditions import describe_accepted, find_in
from finetune_operator.kube.kinds import ROLE_LABEL, Object, is_being_deleted
from finetune_operator.policies.deletion import change_finalizers, deletes_output, needs_finalizer
from finetune_operator.policies.finished import find_expiry, is_finished
from finetune_operator.policies.pod_policy import list_cache_refusals, list_refusals
from finetune_operator.policies.pod_state import is_being_ended, is_held_by_sidecar
from finetune_operator.reconcile.finetunejob.attempts import plan_attempts
from finetune_operator.reconcile.finetunejob.clean_up import plan_deletion
from finetune_operator.reconcile.finetunejob.merge import plan_merge
from finetune_operator.reconcile.finetunejob.merge_status import set_merge_blocked, set_merge_failed
from finetune_operator.reconcile.finetunejob.model import JobStatusBuilder, Observed, Plan, PlanContext
from finetune_operator.reconcile.finetunejob.preflight import plan_preflight
from finetune_operator.reconcile.finetunejob.runs import find_superseded_jobs
from finetune_operator.reconcile.finetunejob.status import describe_expired, set_blocked, set_invalid, set_refused
from finetune_operator.reconcile.finetunejob.story import list_change_events
from finetune_operator.reconcile.status_builder import StatusBuilder
from finetune_operator.settings import Settings

REMOTE_CODE = (
    "spec.model.trustRemoteCode: code that a model brings is not run in this cluster: choose a model that transformers "
    "knows, or ask the administrator to set the chart value trainer.allowRemoteCode"
)


def make_plan(observed: Observed, now: datetime, settings: Settings) -> Plan:
    """Plan one pass. A finished FineTuneJob is never run again; only its observedGeneration follows."""
    if is_being_deleted(observed.resource):
        return plan_deletion(observed, now, settings)
    plan = _plan_job(observed, now, settings)
    superseded = tuple(job for job in find_superseded_jobs(observed) if job not in plan.delete)
    needed = needs_finalizer(observed.resource, is_starting=plan.create is not None)
    changes = tuple(list_change_events(observed.resource.get("status") or {}, plan.status))
    return replace(
        plan,
        end_pods=tuple(_find_held_pods(observed)),
        delete=plan.delete + superseded,
        events=changes + plan.events,
        finalizers=None if plan.expires else change_finalizers(observed.resource, needed),
    )


def _plan_job(observed: Observed, now: datetime, settings: Settings) -> Plan:
    resource = observed.resource
    status = StatusBuilder(FineTuneJobStatus, resource, now)
    if is_finished(resource):
        return _plan_merge(observed, now, settings, status) or _plan_finished(resource, now, status)
    try:
        job, unknown = read_spec(FineTuneJob, resource)
    except ValidationError as error:
        set_invalid(status, "; ".join(str(problem) for problem in problems(error)))
        return Plan(status.as_json())
    plan = _plan_accepted(PlanContext(observed, job, now, settings), status, unknown)
    if plan.create is None or not (refusals := _list_refusals(job, settings)):
        return plan
    # Pods that run already may end by themselves; no new one is created.
    status = StatusBuilder(FineTuneJobStatus, resource, now)
    set_invalid(status, "; ".join(refusals))
    return Plan(status.as_json(), plan.delete)


def _plan_merge(observed: Observed, now: datetime, settings: Settings, status: JobStatusBuilder) -> Plan | None:
    """Plan the merge of the finished adapter; None if nothing is left to do for it."""
    merged = find_in(observed.resource, ConditionType.MERGED)
    if merged is None or merged["status"] == "True":
        return None
    try:
        job, _ = read_spec(FineTuneJob, observed.resource)
    except ValidationError as error:
        set_merge_failed(status, Reason.SPEC_INVALID, "; ".join(str(problem) for problem in problems(error)))
        return None
    plan = plan_merge(PlanContext(observed, job, now, settings), status)
    if plan is None or plan.create is None or not (refusals := _list_refusals(job, settings)):
        return plan
    status = StatusBuilder(FineTuneJobStatus, observed.resource, now)
    set_merge_failed(status, Reason.SPEC_INVALID, "; ".join(refusals))
    return Plan(status.as_json(), plan.delete)


def _plan_finished(resource: Object, now: datetime, status: JobStatusBuilder) -> Plan:
    """Plan that a finished FineTuneJob is deleted when its time to live is over."""
    expiry = find_expiry(resource)
    if expiry is None:
        return Plan(status.as_json())
    if expiry > now:
        return Plan(status.as_json(), requeue_after=(expiry - now).total_seconds())
    event = describe_expired(status.read(), deletes_output=deletes_output(resource))
    return Plan(status.as_json(), events=(event,), expires=True)


def _plan_accepted(context: PlanContext, status: JobStatusBuilder, unknown: list[str]) -> Plan:
    status.conditions.set(
        ConditionType.ACCEPTED, "True", Reason.ACCEPTED, describe_accepted("The spec is valid.", unknown)
    )
    plan = None if _has_passed_preflight(context.observed.resource) else plan_preflight(context, status)
    return plan_attempts(context, status) if plan is None else plan


def _list_refusals(job: FineTuneJob, settings: Settings) -> list[str]:
    """List the settings of the spec that the administrator does not allow."""
    code = [REMOTE_CODE] if job.spec.model.trust_remote_code and not settings.allow_remote_code else []
    cache = list_cache_refusals(job.spec.model.cache, settings)
    return code + cache + list_refusals(job.spec.pod_template, settings)


def plan_refused(observed: Observed, now: datetime, message: str) -> Plan:
    """Plan the end of a FineTuneJob whose Job the API server refuses.

    A label or a quantity of the spec is then not valid.
    """
    status = StatusBuilder(FineTuneJobStatus, observed.resource, now)
    if is_finished(observed.resource):
        set_merge_failed(status, Reason.SPEC_INVALID, message)
    else:
        set_refused(status, message)
    return Plan(status.as_json(), events=tuple(status.events))


def plan_blocked(observed: Observed, now: datetime, message: str) -> Plan:
    """Plan the status of a FineTuneJob whose Job cannot be created now, for a reason outside of the spec."""
    status = StatusBuilder(FineTuneJobStatus, observed.resource, now)
    if is_finished(observed.resource):
        set_merge_blocked(status, message)
    else:
        set_blocked(status, message)
    return Plan(status.as_json())


def _find_held_pods(observed: Observed) -> Iterator[Object]:
    """Find the pods that only a sidecar keeps, and that nobody has ended yet. Our container is named by its role."""
    for batch_job in observed.batch_jobs:
        container = batch_job["metadata"]["labels"].get(ROLE_LABEL, "")
        for pod in observed.pods_of(batch_job["metadata"]["name"]):
            if is_held_by_sidecar(pod, container) and not is_being_ended(pod):
                yield pod


def _has_passed_preflight(resource: Object) -> bool:
    passed = find_in(resource, ConditionType.PREFLIGHT_PASSED)
    return passed is not None and passed["status"] == "True"
