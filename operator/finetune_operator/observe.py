"""What a watch event does: it feeds the local cache and puts the keys that it may concern into the queue. Nothing else."""

from finetune_operator import nudges
from finetune_operator.context import Context
from finetune_operator.kube.kinds import CUSTOM, FINETUNE_JOB, POD, Key, Kind, Object, key_of
from finetune_operator.reconcile.finished import is_settled


def changed(kind: Kind, item: Object, context: Context) -> None:
    """An object is there, in this state."""
    context.metrics.watch_events.labels(kind.name).inc()
    if context.store.put(kind, item):
        nudge(kind, item, context)


def deleted(kind: Kind, item: Object, context: Context) -> None:
    """An object is gone; this was its last state."""
    context.metrics.watch_events.labels(kind.name).inc()
    if context.store.remove(kind, item):
        nudge(kind, item, context)
    meta = item["metadata"]
    if kind is POD:
        context.reports.forget((meta["namespace"], meta["name"], meta["uid"]))
    if kind in CUSTOM:
        context.budget.forget(key_of(kind, item))


def nudge(kind: Kind, item: Object, context: Context) -> None:
    """Queue the keys that this object may concern, without the FineTuneJobs that are finished: those cost memory only."""
    for key in nudges.keys(kind, item, context.store):
        if not _settled(key, context):
            context.queue.add(key)


def _settled(key: Key, context: Context) -> bool:
    item = context.store.get(FINETUNE_JOB, key[1], key[2]) if key[0] == FINETUNE_JOB.name else None
    return item is not None and is_settled(item)
