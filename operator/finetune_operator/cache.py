"""The local cache of all watched objects, indexed by controller and by our labels.

Watch events, lists and the answers to our own writes come in any order: an older state never replaces a newer one.
"""

from collections import OrderedDict, defaultdict
from collections.abc import Iterable

from finetune_api import GROUP
from finetune_operator.kube.kinds import JOB, JOB_LABEL, POD, Key, Kind, Object, controller_uid, key_of
from finetune_operator.kube.ownership import SUSPEND_PATH, find_entries

TOMBSTONES = 10_000
"""Uids of deleted objects that are remembered."""
POD_SPEC = ("nodeName", "activeDeadlineSeconds", "readinessGates")
"""Fields of the spec of a FineTuneJob's pod that are kept."""
POD_STATUS = ("phase", "reason", "message", "conditions")
"""Fields of the status of a FineTuneJob's pod that are kept, and the states of its containers."""
CONTAINER_STATUSES = {"initContainerStatuses", "containerStatuses"}
Index = tuple[str, ...]


class Cache:
    """Objects by key. Callers share the objects that it returns, and must not change them."""

    def __init__(self) -> None:
        """Begin without objects."""
        self._objects: dict[str, dict[Key, Object]] = defaultdict(dict)
        self._index: dict[Index, set[Key]] = defaultdict(set)
        self._deleted: OrderedDict[str, None] = OrderedDict()

    def get(self, kind: Kind, namespace: str, name: str) -> Object | None:
        """Return an object, or None."""
        return self._objects[kind.name].get((kind.name, namespace, name))

    def list_all(self, kind: Kind, namespace: str | None = None) -> list[Object]:
        """List the objects of a kind, by name."""
        objects = self._objects[kind.name]
        return [objects[key] for key in sorted(key for key in objects if namespace in (None, key[1]))]

    def list_owned(self, kind: Kind, uid: str) -> list[Object]:
        """List the objects of a kind whose controller has this uid, by name."""
        return self._find((kind.name, "owner", uid))

    def list_labelled(self, kind: Kind, namespace: str, label: str, value: str) -> list[Object]:
        """List the objects of a kind with this value of one of our own labels, by name."""
        return self._find((kind.name, "label", namespace, label, value))

    def put(self, kind: Kind, resource: Object) -> bool:
        """Put in a state of an object; return False if it is not newer, or the object is known to be deleted."""
        key = key_of(kind, resource)
        cached = self._objects[kind.name].get(key)
        if resource["metadata"]["uid"] in self._deleted:
            return False
        if cached is not None and _read_version(resource) <= _read_version(cached):
            return False
        if cached is not None:
            self._unlink(kind, key, cached)
        self._objects[kind.name][key] = resource = slim(kind, resource)
        for index in _list_indexes(kind, resource):
            self._index[index].add(key)
        return True

    def remove(self, kind: Kind, resource: Object) -> bool:
        """Remove an object that was deleted; return False if it is not known."""
        uid = resource["metadata"]["uid"]
        self._deleted[uid] = None
        if len(self._deleted) > TOMBSTONES:
            self._deleted.popitem(last=False)
        key = key_of(kind, resource)
        cached = self._objects[kind.name].get(key)
        if cached is None or cached["metadata"]["uid"] != uid:
            return False
        self._unlink(kind, key, cached)
        del self._objects[kind.name][key]
        return True

    def replace(self, kind: Kind, namespace: str | None, items: Iterable[Object], version: str) -> list[Object]:
        """Put in a list of all objects of a kind, in one namespace or in all.

        Returns the objects that changed, and those that were deleted without a watch event.
        """
        listed = {resource["metadata"]["uid"]: resource for resource in items}
        changed = [resource for resource in listed.values() if self.put(kind, resource)]
        vanished = [
            resource
            for resource in self.list_all(kind, namespace)
            if resource["metadata"]["uid"] not in listed and _read_version(resource) <= int(version)
        ]
        return changed + [resource for resource in vanished if self.remove(kind, resource)]

    def _find(self, index: Index) -> list[Object]:
        objects = self._objects[index[0]]
        return [objects[key] for key in sorted(self._index.get(index, ()))]

    def _unlink(self, kind: Kind, key: Key, resource: Object) -> None:
        for index in _list_indexes(kind, resource):
            self._index[index].discard(key)
            if not self._index[index]:
                del self._index[index]


def slim(kind: Kind, resource: Object) -> Object:
    """Drop what no decision needs: the cache holds thousands of finished Jobs and pods."""
    meta = {name: value for name, value in resource["metadata"].items() if name != "managedFields"}
    small = {**resource, "metadata": meta}
    if JOB_LABEL in meta.get("labels", {}):
        status = resource.get("status", {})
        if kind is POD:
            spec = resource.get("spec", {})
            small["spec"] = {name: spec[name] for name in POD_SPEC if name in spec}
            small["status"] = {name: value for name, value in status.items() if name in POD_STATUS}
            for name in CONTAINER_STATUSES & status.keys():
                small["status"][name] = [
                    {"name": entry["name"], "state": entry.get("state", {})} for entry in status[name]
                ]
        elif kind is JOB:
            small["spec"] = {"suspend": True} if resource.get("spec", {}).get("suspend") else {}
            if small["spec"]:
                meta["managedFields"] = [
                    {"manager": entry["manager"], "fieldsV1": {"f:spec": {"f:suspend": {}}}}
                    for entry in find_entries(resource, SUSPEND_PATH)
                ]
            small["status"] = {"conditions": status.get("conditions", [])}
    return small


def _read_version(resource: Object) -> int:
    """Return the resource version as the number that it is: it grows with each write."""
    return int(resource["metadata"]["resourceVersion"])


def _list_indexes(kind: Kind, resource: Object) -> list[Index]:
    meta = resource["metadata"]
    indexes: list[Index] = [
        (kind.name, "label", meta.get("namespace", ""), label, value)
        for label, value in meta.get("labels", {}).items()
        if label.startswith(f"{GROUP}/")
    ]
    owner = controller_uid(resource)
    return [*indexes, (kind.name, "owner", owner)] if owner else indexes
