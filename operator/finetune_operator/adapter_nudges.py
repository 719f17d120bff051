"""Which serving group (all AdapterDeployments of one inference Deployment) a change of an object may concern."""

from finetune_api import GROUP
from finetune_operator.kube.kinds import ADAPTER_DEPLOYMENT, DEPLOYMENT, FINETUNE_JOB, Key, Kind, Object
from finetune_operator.store import Store

SERVING_GROUP = "ServingGroup"
"""The kind in the keys of serving groups; their name is that of the Deployment."""
DEPLOYMENT_ANNOTATION = f"{GROUP}/deployment"
"""On ConfigMaps and pods of ours: name of the inference Deployment."""


def serving_groups(kind: Kind, item: Object, store: Store) -> list[Key]:
    """The keys to look at after this object changed, appeared or was deleted."""
    meta = item["metadata"]
    namespace = meta["namespace"]
    if kind is ADAPTER_DEPLOYMENT:
        return _target(item)
    if kind is FINETUNE_JOB:
        users = [user for user in store.all(ADAPTER_DEPLOYMENT, namespace) if _job(user) == meta["name"]]
        return [key for user in users for key in _target(user)]
    if kind is DEPLOYMENT:
        return [(SERVING_GROUP, namespace, meta["name"])]
    name = meta.get("annotations", {}).get(DEPLOYMENT_ANNOTATION)
    return [(SERVING_GROUP, namespace, name)] if name else []


def _target(item: Object) -> list[Key]:
    name = item.get("spec", {}).get("target", {}).get("deploymentRef", {}).get("name")
    return [(SERVING_GROUP, item["metadata"]["namespace"], name)] if name else []


def _job(item: Object) -> str | None:
    name: str | None = item.get("spec", {}).get("adapter", {}).get("fineTuneJobRef", {}).get("name")
    return name
