"""Cache all watched objects, with indexes by controller, label, and reference of an AdapterDeployment.

Watch events, lists and the answers to our own writes come in any order: an older state never replaces a newer one.
Thousands of finished jobs cost memory only, so objects are kept as compressed JSON: a tenth of what dictionaries take.
"""

import zlib
from collections import OrderedDict, defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from heapq import nlargest

from pydantic_core import from_json, to_json

from finetune_api import GROUP
from finetune_api.conditions import ConditionType
from finetune_operator.kube.kinds import (
    ADAPTER_DEPLOYMENT,
    FINETUNE_JOB,
    JOB,
    JOB_LABEL,
    POD,
    Key,
    Kind,
    Object,
    controller_uid,
    key_of,
)
from finetune_operator.kube.ownership import SUSPEND_PATH, find_entries
from finetune_operator.kube.workloads import find_workload

TOMBSTONES = 10_000
"""Maximum number of deleted objects whose uids are remembered."""
JOB_SPEC = ("suspend", "parallelism", "backoffLimit")
"""Fields of the spec of a FineTuneJob's Job that are kept, because anybody may change them later."""
POD_SPEC = ("nodeName", "activeDeadlineSeconds", "readinessGates")
"""Fields of the spec of a FineTuneJob's pod that are kept."""
POD_STATUS = ("phase", "reason", "message", "conditions")
"""Fields of the status of a FineTuneJob's pod that are kept, and the states of its containers."""
CONTAINER_STATUSES = {"initContainerStatuses", "containerStatuses"}
NO_LABELS: Mapping[str, str] = {}
ANY = "*"
"""Name in the index by FineTuneJob for the AdapterDeployments that choose their FineTuneJob by labels."""
Index = tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Entry:
    """A cached object.

    Attributes:
        uid: Its uid.
        version: Its resource version.
        packed: The object as compressed JSON.
        labels: The labels of a FineTuneJob, by which an AdapterDeployment may choose it; empty for other kinds.
    """

    uid: str
    version: int
    packed: bytes
    labels: Mapping[str, str]


class Cache:
    """The watched objects by key. Each call returns copies."""

    def __init__(self) -> None:
        """Create an empty cache."""
        self._objects: dict[str, dict[Key, Entry]] = defaultdict(dict)
        self._index: dict[Index, set[Key]] = defaultdict(set)
        self._deleted: OrderedDict[str, None] = OrderedDict()

    def get(self, kind: Kind, namespace: str, name: str) -> Object | None:
        """Return an object, or None."""
        entry = self._objects[kind.name].get((kind.name, namespace, name))
        return _unpack(entry) if entry is not None else None

    def list_all(self, kind: Kind, namespace: str | None = None) -> list[Object]:
        """List the objects of a kind, by name."""
        objects = self._objects[kind.name]
        return [_unpack(objects[key]) for key in sorted(key for key in objects if namespace in (None, key[1]))]

    def list_selected(self, namespace: str, selects: Callable[[Mapping[str, str]], bool]) -> list[Object]:
        """List the FineTuneJobs whose labels are selected, by name. The others, perhaps thousands, are not unpacked."""
        objects = self._objects[FINETUNE_JOB.name]
        keys = sorted(key for key, entry in objects.items() if key[1] == namespace and selects(entry.labels))
        return [_unpack(objects[key]) for key in keys]

    def list_owned(self, kind: Kind, uid: str) -> list[Object]:
        """List the objects of a kind whose controller has this uid, by name."""
        return self._find((kind.name, "owner", uid))

    def list_labelled(self, kind: Kind, namespace: str, label: str, value: str) -> list[Object]:
        """List the objects of a kind with this value of one of our own labels, by name."""
        return self._find((kind.name, "label", namespace, label, value))

    def list_newest(self, kind: Kind, namespace: str, labels: Mapping[str, str], limit: int) -> list[Object]:
        """List the objects of a kind with these of our own labels: at most ``limit``, those first that changed last."""
        found = [self._index.get((kind.name, "label", namespace, *label), set()) for label in labels.items()]
        entries = [self._objects[kind.name][key] for key in set.intersection(*found)]
        return [_unpack(entry) for entry in nlargest(limit, entries, key=lambda entry: entry.version)]

    def list_failed(self, namespace: str, label: str, value: str) -> list[Object]:
        """List the FineTuneJobs that have failed and have a Job with this value of one of our labels, by name."""
        labelled = self._index.get((JOB.name, "label", namespace, label, value), set())
        entries = [self._objects[FINETUNE_JOB.name][key] for key in sorted(self._index.get(_failed(namespace), ()))]
        return [
            _unpack(entry) for entry in entries if labelled & self._index.get((JOB.name, "owner", entry.uid), set())
        ]

    def list_targeting(self, namespace: str, group: str) -> list[Object]:
        """List the AdapterDeployments of a serving group, by name."""
        return self._find((ADAPTER_DEPLOYMENT.name, "target", namespace, group))

    def list_selecting(self, namespace: str) -> list[Object]:
        """List the AdapterDeployments that choose their pods by labels, by name."""
        return self._find((ADAPTER_DEPLOYMENT.name, "selector", namespace))

    def list_takers(self, namespace: str, finetune_job: str) -> list[Object]:
        """List the AdapterDeployments that name a FineTuneJob, or choose one by labels."""
        return [
            taker
            for name in (finetune_job, ANY)
            for taker in self._find((ADAPTER_DEPLOYMENT.name, "source", namespace, name))
        ]

    def put(self, kind: Kind, resource: Object) -> bool:
        """Store a state of an object; return False if it is not newer, or the object was deleted."""
        key = key_of(kind, resource)
        uid, version = resource["metadata"]["uid"], int(resource["metadata"]["resourceVersion"])
        cached = self._objects[kind.name].get(key)
        if uid in self._deleted:
            return False
        if cached is not None and version <= cached.version:
            return False
        if cached is not None:
            self._unlink(kind, key, cached)
        small = slim(kind, resource)
        labels = small["metadata"].get("labels", {}) if kind is FINETUNE_JOB else NO_LABELS
        self._objects[kind.name][key] = Entry(uid, version, _pack(small), labels)
        for index in _list_indexes(kind, small):
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
        if cached is None or cached.uid != uid:
            return False
        self._unlink(kind, key, cached)
        del self._objects[kind.name][key]
        return True

    def drop_vanished(self, kind: Kind, namespace: str | None, uids: set[str], version: int) -> list[Object]:
        """Remove and return the objects of a kind that a list no longer has, in one namespace or in all.

        Args:
            kind: The kind.
            namespace: The namespace; None: all.
            uids: The uids in the list.
            version: Resource version of the list. Newer objects stay: they may have been created after it.
        """
        vanished = [
            _unpack(entry)
            for key, entry in self._objects[kind.name].items()
            if namespace in (None, key[1]) and entry.uid not in uids and entry.version <= version
        ]
        return [resource for resource in vanished if self.remove(kind, resource)]

    def _find(self, index: Index) -> list[Object]:
        objects = self._objects[index[0]]
        return [_unpack(objects[key]) for key in sorted(self._index.get(index, ()))]

    def _unlink(self, kind: Kind, key: Key, entry: Entry) -> None:
        for index in _list_indexes(kind, _unpack(entry)):
            self._index[index].discard(key)
            if not self._index[index]:
                del self._index[index]


def slim(kind: Kind, resource: Object) -> Object:
    """Return the object without fields that no decision needs. There may be thousands of finished Jobs and pods."""
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
            spec = resource.get("spec", {})
            small["spec"] = {name: spec[name] for name in JOB_SPEC if name in spec}
            if spec.get("suspend"):
                meta["managedFields"] = [
                    {"manager": entry["manager"], "fieldsV1": {"f:spec": {"f:suspend": {}}}}
                    for entry in find_entries(resource, SUSPEND_PATH)
                ]
            small["status"] = {"conditions": status.get("conditions", [])}
    return small


def _pack(resource: Object) -> bytes:
    return zlib.compress(to_json(resource), level=1)


def _unpack(entry: Entry) -> Object:
    resource: Object = from_json(zlib.decompress(entry.packed))
    return resource


def _failed(namespace: str) -> Index:
    return (FINETUNE_JOB.name, "failed", namespace)


def _list_indexes(kind: Kind, resource: Object) -> list[Index]:
    meta = resource["metadata"]
    indexes: list[Index] = [
        (kind.name, "label", meta.get("namespace", ""), label, value)
        for label, value in meta.get("labels", {}).items()
        if label.startswith(f"{GROUP}/")
    ]
    if kind is ADAPTER_DEPLOYMENT:
        workload, source = find_workload(resource["spec"]["target"]), resource["spec"]["adapter"]
        name = ANY if "selector" in source else source.get("fineTuneJobRef", {}).get("name", "")
        if workload is not None:
            indexes.append((kind.name, "target", meta["namespace"], workload.group))
        if workload is not None and workload.kind is POD:
            indexes.append((kind.name, "selector", meta["namespace"]))
        indexes.append((kind.name, "source", meta["namespace"], name))
    if kind is FINETUNE_JOB and any(
        (item["type"], item["status"]) == (ConditionType.SUCCEEDED, "False")
        for item in (resource.get("status") or {}).get("conditions", ())
    ):
        indexes.append(_failed(meta["namespace"]))
    owner = controller_uid(resource)
    return [*indexes, (kind.name, "owner", owner)] if owner else indexes
