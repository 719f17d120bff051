"""Enqueue the keys that a change of an object may concern.

A key too many costs a pass that does nothing. A key too few is a bug.
"""

from pydantic import ValidationError

from finetune_api.core_v1.selectors import LabelSelector
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
    Key,
    Kind,
    Object,
    finetune_job_of,
    key_of,
)
from finetune_operator.policies.finished import is_up_to_date
from finetune_operator.policies.label_selector import matches


def enqueue(kind: Kind, resource: Object, context: Context) -> None:
    """Enqueue the keys that this object may concern.

    A finished FineTuneJob is left out: a pass would change nothing.
    """
    for key in find_keys(kind, resource, context.cache):
        if not _is_up_to_date(key, context.cache):
            context.queue.add(key)


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
        users = [user for user in cache.list_all(ADAPTER_DEPLOYMENT, namespace) if _takes_adapter_of(user, resource)]
        return [key for user in users for key in _find_target(user)]
    if kind is DEPLOYMENT:
        return [(SERVING_GROUP, namespace, meta["name"])]
    name = meta.get("annotations", {}).get(DEPLOYMENT_ANNOTATION)
    return [(SERVING_GROUP, namespace, name)] if name else []


def _find_target(adapter_deployment: Object) -> list[Key]:
    name = adapter_deployment.get("spec", {}).get("target", {}).get("deploymentRef", {}).get("name")
    return [(SERVING_GROUP, adapter_deployment["metadata"]["namespace"], name)] if name else []


def _takes_adapter_of(adapter_deployment: Object, finetune_job: Object) -> bool:
    """Return whether an AdapterDeployment names the FineTuneJob, or chooses it by its labels."""
    source, meta = adapter_deployment.get("spec", {}).get("adapter", {}), finetune_job["metadata"]
    if "selector" not in source:
        return bool(source.get("fineTuneJobRef", {}).get("name") == meta["name"])
    try:
        selector = LabelSelector.model_validate(source["selector"])
    except ValidationError:  # the pass over its group says what is wrong with it
        return False
    return matches(selector, meta.get("labels", {}))


def _is_up_to_date(key: Key, cache: Cache) -> bool:
    kind, namespace, name = key
    resource = cache.get(FINETUNE_JOB, namespace, name) if kind == FINETUNE_JOB.name else None
    return resource is not None and is_up_to_date(resource)
