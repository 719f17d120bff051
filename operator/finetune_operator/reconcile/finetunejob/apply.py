"""Apply the plan for a FineTuneJob: delete and create Jobs, then write the status."""

import contextlib
import logging
import time
from datetime import datetime

from finetune_operator.context import Context
from finetune_operator.enqueue import enqueue_serving_groups
from finetune_operator.events import tell_event
from finetune_operator.kube.errors import AlreadyExistsError, ForbiddenError, InvalidError
from finetune_operator.kube.kinds import (
    ATTEMPT_LABEL,
    FINETUNE_JOB,
    JOB,
    JOB_LABEL,
    POD,
    ROLE_LABEL,
    Object,
    controller_uid,
    is_being_deleted,
    key_of,
)
from finetune_operator.policies.finished import is_finished, is_merging, is_up_to_date
from finetune_operator.policies.pod_state import END_NOW
from finetune_operator.policies.refused_job import explain_refused_job
from finetune_operator.reconcile.finetunejob.clean_up import plan_blocked_clean_up
from finetune_operator.reconcile.finetunejob.model import Observed, Plan
from finetune_operator.reconcile.finetunejob.plan import plan_blocked, plan_refused
from finetune_operator.reconcile.result import Result
from finetune_operator.reconcile.write_status import differs, write_status
from finetune_operator.resources.names import TRAINER

logger = logging.getLogger(__name__)
BLOCKED_SECONDS = 15.0
"""Time between two tries to create a Job that cannot be created for a reason outside of the spec."""
NAMESPACE_TERMINATING = "NamespaceTerminating"
"""Cause of a refusal to create an object: its namespace is being deleted."""
SLOW_FIELDS = ("progress", "checkpoint")
"""A status that differs in these fields only may wait for the write budget."""


class RefusedError(Exception):
    """The API server refuses the Job of a spec; the message names the wrong fields of the spec."""


class BlockedError(Exception):
    """The Job cannot be created now, for a reason outside of the spec, which the message gives."""

    def __init__(self, message: str, *, is_final: bool = False) -> None:
        """Keep the message; ``is_final``: it can never be created, because its namespace is being deleted."""
        super().__init__(message)
        self.is_final = is_final


async def apply(observed: Observed, plan: Plan, now: datetime, context: Context) -> Result:
    """Apply the plan. Raises ``KubeError`` if a call failed that may succeed later."""
    meta = observed.resource["metadata"]
    if plan.expires:
        for event in plan.events:
            await tell_event(FINETUNE_JOB, observed.resource, event, context)
        await context.kube.delete(FINETUNE_JOB, meta["namespace"], meta["name"], meta["uid"])
        if not meta.get("finalizers"):
            _forget(observed.resource, context)
        return Result()
    if plan.finalizers is not None:
        return await _write_finalizers(observed.resource, plan, context)
    for pod in plan.end_pods:
        await _end_pod(pod, context)
    for batch_job in plan.delete:
        await context.kube.delete(JOB, meta["namespace"], batch_job["metadata"]["name"], batch_job["metadata"]["uid"])
    if plan.create is not None and is_repetition(plan.create) and await _look_again(plan.create, context):
        return Result(requeue_after=0)
    if plan.create is not None and is_being_deleted(observed.resource) and await _is_gone(observed.resource, context):
        _forget(observed.resource, context)
        return Result()
    try:
        if plan.rehearsal is not None:
            await _rehearse(plan.rehearsal, context)
        if plan.create is not None and not await _create(plan.create, meta["uid"], context):
            return Result(requeue_after=0)
    except RefusedError as error:
        if is_being_deleted(observed.resource):
            return await _apply_blocked_clean_up(observed, now, str(error), context, is_final=True)
        plan = plan_refused(observed, now, str(error))
    except BlockedError as error:
        if is_being_deleted(observed.resource):
            return await _apply_blocked_clean_up(observed, now, str(error), context, is_final=error.is_final)
        await _write(observed.resource, plan_blocked(observed, now, str(error)), context)
        return Result(BLOCKED_SECONDS)
    return await _write(observed.resource, plan, context)


def _forget(resource: Object, context: Context) -> None:
    """Forget a FineTuneJob that is gone. No watch reports a deletion between the first list and the watches."""
    if context.cache.remove(FINETUNE_JOB, resource):
        context.budget.forget(key_of(FINETUNE_JOB, resource))
        enqueue_serving_groups(FINETUNE_JOB, resource, context)


async def _apply_blocked_clean_up(
    observed: Observed, now: datetime, message: str, context: Context, *, is_final: bool
) -> Result:
    plan = plan_blocked_clean_up(observed, now, context.settings, message, is_final=is_final)
    if plan.finalizers is not None:
        return await _write_finalizers(observed.resource, plan, context)
    return await _write(observed.resource, plan, context)


async def _write_finalizers(resource: Object, plan: Plan, context: Context) -> Result:
    """Write the events, then the finalizers. Raises ``ConflictError`` if the resource changed since it was read."""
    meta = resource["metadata"]
    # without its last finalizer the object is gone, and no event about it can be written
    for event in plan.events if is_being_deleted(resource) else ():
        await tell_event(FINETUNE_JOB, resource, event, context)
    patch = {"metadata": {"resourceVersion": meta["resourceVersion"], "finalizers": plan.finalizers}}
    written = await context.kube.merge(FINETUNE_JOB, meta["namespace"], meta["name"], patch)
    if written is None or (is_being_deleted(written) and not written["metadata"].get("finalizers")):
        # The answer has the old resource version. A pass over the cached object would create what is deleted with it.
        _forget(resource, context)
        return Result()
    context.cache.put(FINETUNE_JOB, written)
    return Result(requeue_after=0)


async def _end_pod(pod: Object, context: Context) -> None:
    """End a pod whose result is known.

    A cluster that does not allow this keeps the pod, but must not keep the result out of the status.
    """
    meta = pod["metadata"]
    try:
        written = await context.kube.merge(POD, meta["namespace"], meta["name"], END_NOW)
    except (ForbiddenError, InvalidError) as error:
        logger.warning("Cannot end pod %s/%s, which a sidecar keeps: %s", meta["namespace"], meta["name"], error)
    else:
        if written is not None:
            context.cache.put(POD, written)


def is_repetition(batch_job: Object) -> bool:
    """Return whether a Job runs a trainer and is not the first one of its FineTuneJob."""
    labels = batch_job["metadata"]["labels"]
    return bool(labels[ROLE_LABEL] == TRAINER and labels[ATTEMPT_LABEL] != "1")


async def _look_again(batch_job: Object, context: Context) -> bool:
    """Ask the API server for the trainers of a job; return whether it knows more of them than the cache.

    A watch may be late, and a second trainer must not start while one runs that the cache does not have.
    """
    meta = batch_job["metadata"]
    labels = ",".join(f"{name}={meta['labels'][name]}" for name in (JOB_LABEL, ROLE_LABEL))
    is_new = False
    for kind in (JOB, POD):
        items, _ = await context.kube.list(kind, meta["namespace"], labels)
        for item in items:
            is_new |= context.cache.put(kind, item)
    return is_new


async def _is_gone(resource: Object, context: Context) -> bool:
    """Ask the API server whether a deleted FineTuneJob is gone: the answer to its release may have been lost."""
    meta = resource["metadata"]
    live = await context.kube.get(FINETUNE_JOB, meta["namespace"], meta["name"])
    return live is None or live["metadata"]["uid"] != meta["uid"]


async def _rehearse(batch_job: Object, context: Context) -> None:
    """Have the API server check a Job. Raises ``RefusedError`` for wrong content; other errors may be temporary."""
    with contextlib.suppress(AlreadyExistsError, ForbiddenError):
        try:
            await context.kube.create(JOB, batch_job, dry_run=True)
        except InvalidError as error:
            raise RefusedError(explain_refused_job(error)) from error


async def _create(batch_job: Object, owner: str, context: Context) -> bool:
    """Create a Job; return whether it is new.

    It exists already if the status write of the pass that created it was lost. The next pass continues with it.
    """
    try:
        context.cache.put(JOB, await context.kube.create(JOB, batch_job))
    except InvalidError as error:
        raise RefusedError(explain_refused_job(error)) from error
    except ForbiddenError as error:
        name = batch_job["metadata"]["name"]
        is_final = any(cause.get("reason") == NAMESPACE_TERMINATING for cause in error.causes)
        text = f"The API server does not allow the Job {name}: {error.message}"
        raise BlockedError(text, is_final=is_final) from error
    except AlreadyExistsError:
        await _adopt(batch_job["metadata"]["namespace"], batch_job["metadata"]["name"], owner, context)
        return False
    return True


async def _adopt(namespace: str, name: str, owner: str, context: Context) -> None:
    """Put the existing Job of this name into the cache. Raises ``BlockedError`` if it has another owner."""
    live = await context.kube.get(JOB, namespace, name)
    if live is None:
        return
    if controller_uid(live) != owner:
        raise BlockedError(
            f"A Job {name} exists in this namespace and does not belong to this FineTuneJob. If it is not about to "
            "vanish with an older FineTuneJob of this name, delete it, or use another name."
        )
    context.cache.put(JOB, live)


async def _write(resource: Object, plan: Plan, context: Context) -> Result:
    """Write the status. One that only carries progress waits for the write budget."""
    if differs(resource, plan.status) and not is_urgent(resource.get("status", {}), plan.status):
        delay = context.budget.delay(key_of(FINETUNE_JOB, resource), time.monotonic())
        if delay > 0:
            return Result(min(delay, plan.requeue_after or delay))
    written = await write_status(FINETUNE_JOB, resource, plan.status, plan.events, context)
    if written is not None:
        enqueue_serving_groups(FINETUNE_JOB, written, context)
        if is_finished(written) and not is_merging(written) and not is_up_to_date(written):
            return Result(requeue_after=0)  # no event need follow that would enqueue it for what is left to do
    return Result(plan.requeue_after)


def is_urgent(before: Object, after: Object) -> bool:
    """Return whether the statuses differ in more than progress, checkpoint, and the texts of conditions."""
    return _select_urgent(before) != _select_urgent(after)


def _select_urgent(status: Object) -> Object:
    conditions = [(item["type"], item["status"], item["reason"]) for item in status.get("conditions", [])]
    rest = {name: value for name, value in status.items() if name not in SLOW_FIELDS and name != "conditions"}
    return {**rest, "conditions": conditions}
