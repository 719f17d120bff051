"""Ingest watch events: update the local cache and enqueue the keys that the event may concern."""

from finetune_operator.context import Context
from finetune_operator.enqueue import enqueue
from finetune_operator.kube.kinds import ADAPTER_DEPLOYMENT, CUSTOM, POD, Kind, Object, key_of


def ingest_change(kind: Kind, resource: Object, context: Context) -> None:
    """Ingest an object that appeared or changed."""
    context.metrics.watch_events.labels(kind.name).inc()
    if context.cache.put(kind, resource):
        enqueue(kind, resource, context)


def ingest_deletion(kind: Kind, resource: Object, context: Context) -> None:
    """Ingest the deletion of an object, given in its last state."""
    context.metrics.watch_events.labels(kind.name).inc()
    if context.cache.remove(kind, resource):
        enqueue(kind, resource, context)
    meta = resource["metadata"]
    if kind is POD:
        context.pod_reports.forget((meta["namespace"], meta["name"], meta["uid"]))
    if kind is ADAPTER_DEPLOYMENT:
        context.analyses.forget((meta["namespace"], meta["name"]))
    if kind in CUSTOM:
        context.budget.forget(key_of(kind, resource))
