"""Write the status of an object: once per pass, only if it differs, and the events after it."""

from collections.abc import Iterable

from finetune_operator.context import Context
from finetune_operator.event_record import EventRecord
from finetune_operator.events import tell_event
from finetune_operator.kube.errors import ConflictError
from finetune_operator.kube.kinds import Kind, Object


def differs(resource: Object, status: Object) -> bool:
    """Return whether the status differs from the resource's."""
    return status != (resource.get("status") or {})


async def write_status(
    kind: Kind, resource: Object, status: Object, events: Iterable[EventRecord], context: Context
) -> Object | None:
    """Write a status that differs, then the events; return the resource as it was written.

    Returns None if nothing was written.

    Raises ``ConflictError`` if the resource changed since it was read: the cache then has the newest state.
    """
    if not differs(resource, status):
        return None
    meta = resource["metadata"]
    try:
        written = await context.kube.write_status(kind, resource, status)
    except ConflictError:
        newest = await context.kube.get(kind, meta["namespace"], meta["name"])
        if newest is not None:
            context.cache.put(kind, newest)
        raise
    if written is not None:
        context.cache.put(kind, written)
        for event in events:
            await tell_event(kind, resource, event, context)
    return written
