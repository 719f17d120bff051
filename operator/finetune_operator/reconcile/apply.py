"""Carry out a plan: deletions, the new Job, then one status write if the status differs, then events."""

import time

from finetune_operator import events
from finetune_operator.adapter_nudges import serving_groups
from finetune_operator.context import Context
from finetune_operator.kube.errors import AlreadyExistsError, ConflictError, ForbiddenError, InvalidError
from finetune_operator.kube.kinds import FINETUNE_JOB, JOB, Object, controller_uid, key_of
from finetune_operator.reconcile.model import Observed, Plan
from finetune_operator.reconcile.result import Result

SLOW_FIELDS = ("progress", "checkpoint")
"""Status fields whose change alone may wait for the write budget; the newest value wins."""


class RefusedError(Exception):
    """The API server does not accept the Job that the spec leads to; the text is the server's."""


class BlockedError(Exception):
    """The Job cannot be created now, for a reason outside of the spec; the text says which."""


async def apply(observed: Observed, plan: Plan, context: Context) -> Result:
    """Raises ``RefusedError``, ``BlockedError``, and ``KubeError`` for the rest."""
    meta = observed.item["metadata"]
    for job in plan.delete:
        await context.kube.delete(JOB, meta["namespace"], job["metadata"]["name"], job["metadata"]["uid"])
    if plan.create is not None and not await _create(plan.create, meta["uid"], context):
        return Result(requeue_after=0)
    return await write_status(observed.item, plan, context)


async def _create(job: Object, owner: str, context: Context) -> bool:
    """False if the Job was there already, made by a pass whose status write was lost: the next pass goes on from it."""
    try:
        context.store.put(JOB, await context.kube.create(JOB, job))
    except InvalidError as error:
        raise RefusedError(error.message) from error
    except ForbiddenError as error:
        raise BlockedError(
            f"The API server does not allow the Job {job['metadata']['name']}: {error.message}"
        ) from error
    except AlreadyExistsError:
        await _adopt(job["metadata"]["namespace"], job["metadata"]["name"], owner, context)
        return False
    return True


async def _adopt(namespace: str, name: str, owner: str, context: Context) -> None:
    live = await context.kube.get(JOB, namespace, name)
    if live is None:
        return
    if controller_uid(live) != owner:
        raise BlockedError(
            f"A Job {name} exists in this namespace and does not belong to this FineTuneJob. If it is not about to vanish with an older "
            "FineTuneJob of this name, delete it, or use another name."
        )
    context.store.put(JOB, live)


async def write_status(item: Object, plan: Plan, context: Context) -> Result:
    """One write, and only on difference. What is merely progress waits for the budget."""
    before = item.get("status", {})
    if plan.status == before:
        return Result(plan.requeue_after)
    key = key_of(FINETUNE_JOB, item)
    if not is_urgent(before, plan.status):
        delay = context.budget.delay(key, time.monotonic())
        if delay > 0:
            return Result(min(delay, plan.requeue_after or delay))
    try:
        written = await context.kube.write_status(FINETUNE_JOB, item, plan.status)
    except ConflictError:
        fresh = await context.kube.get(FINETUNE_JOB, key[1], key[2])
        if fresh is not None:
            context.store.put(FINETUNE_JOB, fresh)
        raise
    if written is not None:
        context.store.put(FINETUNE_JOB, written)
        for group in serving_groups(FINETUNE_JOB, written, context.store):
            context.queue.add(group)
        for note in plan.notes:
            await events.post(FINETUNE_JOB, item, note, context)
    return Result(plan.requeue_after)


def is_urgent(before: Object, after: Object) -> bool:
    """Whether more than progress, or the wording of a condition, changes."""
    return _essence(before) != _essence(after)


def _essence(status: Object) -> Object:
    conditions = [(item["type"], item["status"], item["reason"]) for item in status.get("conditions", [])]
    rest = {name: value for name, value in status.items() if name not in SLOW_FIELDS and name != "conditions"}
    return {**rest, "conditions": conditions}
