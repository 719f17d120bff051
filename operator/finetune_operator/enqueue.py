"""Enqueue the keys that a change of an object may concern.

A key too many costs a pass that changes nothing. A missing key is a bug.
"""

from finetune_api.label_selector import matches, parse_selector
from finetune_operator.cache import Cache
from finetune_operator.context import Context
from finetune_operator.kube.kinds import (
    ADAPTER_DEPLOYMENT,
    CUSTOM,
    DEPLOYMENT,
    DEPLOYMENT_ANNOTATION,
    FINETUNE_JOB,
    JOB,
    POD,
    SERVING_GROUP,
    STATEFUL_SET,
    Key,
    Kind,
    Object,
    finetune_job_of,
    key_of,
)
from finetune_operator.kube.workloads import WorkloadRef, find_workload
from finetune_operator.policies.finished import is_up_to_date


def enqueue(kind: Kind, resource: Object, context: Context) -> None:
    """Enqueue the keys that this object may concern.

    A finished FineTuneJob is left out: a pass would change nothing. One without a status comes after begun ones.
    """
    for key in find_keys(kind, resource, context.cache):
        finetune_job = context.cache.get(FINETUNE_JOB, *key[1:]) if key[0] == FINETUNE_JOB.name else None
        if finetune_job is None or not is_up_to_date(finetune_job):
            context.queue.add(key, is_new=finetune_job is not None and not finetune_job.get("status"))


def enqueue_serving_groups(kind: Kind, resource: Object, context: Context) -> None:
    """Enqueue only the serving groups that this object may concern."""
    for key in find_serving_groups(kind, resource, context.cache):
        context.queue.add(key)


def enqueue_namespace(namespace: str, context: Context) -> None:
    """Enqueue the keys of all of our objects in a namespace."""
    for kind in CUSTOM:
        for resource in context.cache.list_all(kind, namespace):
            enqueue(kind, resource, context)


def find_keys(kind: Kind, resource: Object, cache: Cache) -> list[Key]:
    """List the keys that an object may concern after it changed, appeared or was deleted."""
    parent = finetune_job_of(resource) if kind in (JOB, POD) else None
    if parent is not None:
        return [(FINETUNE_JOB.name, resource["metadata"]["namespace"], parent)]
    own_key = [key_of(kind, resource)] if kind is FINETUNE_JOB else []
    return own_key + find_serving_groups(kind, resource, cache)


def find_serving_groups(kind: Kind, resource: Object, cache: Cache) -> list[Key]:
    """List the keys of the serving groups (see ``SERVING_GROUP``) that an object may concern."""
    meta = resource["metadata"]
    namespace = meta["namespace"]
    if kind is ADAPTER_DEPLOYMENT:
        return _find_target(resource)
    if kind is FINETUNE_JOB:
        users = [user for user in cache.list_takers(namespace, meta["name"]) if _takes_adapter_of(user, resource)]
        return [key for user in users for key in _find_target(user)]
    if kind in (DEPLOYMENT, STATEFUL_SET):
        return [(SERVING_GROUP, namespace, WorkloadRef(kind, meta["name"]).group)]
    name = meta.get("annotations", {}).get(DEPLOYMENT_ANNOTATION)
    selecting = _find_selecting(resource, cache) if kind is POD else []
    return ([(SERVING_GROUP, namespace, name)] if name else []) + selecting


def _find_target(adapter_deployment: Object) -> list[Key]:
    workload = find_workload(adapter_deployment.get("spec", {}).get("target", {}))
    return [(SERVING_GROUP, adapter_deployment["metadata"]["namespace"], workload.group)] if workload else []


def _find_selecting(pod: Object, cache: Cache) -> list[Key]:
    """List the keys of the serving groups whose selector chooses the pod."""
    candidates = cache.list_selecting(pod["metadata"]["namespace"])
    selecting = [resource for resource in candidates if _selects(resource["spec"]["target"]["selector"], pod)]
    return list(dict.fromkeys(key for resource in selecting for key in _find_target(resource)))


def _takes_adapter_of(adapter_deployment: Object, finetune_job: Object) -> bool:
    """Return whether an AdapterDeployment names the FineTuneJob, or chooses it by its labels."""
    source = adapter_deployment.get("spec", {}).get("adapter", {})
    if "selector" not in source:
        return bool(source.get("fineTuneJobRef", {}).get("name") == finetune_job["metadata"]["name"])
    return _selects(source["selector"], finetune_job)


def _selects(selector: Object, resource: Object) -> bool:
    """Return whether a selector is valid and chooses an object. One of a newer version may not be valid."""
    parsed = parse_selector(selector)
    return parsed is not None and matches(parsed, resource["metadata"].get("labels", {}))
