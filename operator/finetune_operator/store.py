"""The local cache: the newest known state of every object that the operator watches, indexed by controller and by our labels.

It is fed by watch events, by lists and by the answers to our own writes, in any order: an older state never replaces a newer one.
"""

from collections import OrderedDict, defaultdict
from collections.abc import Iterable

from finetune_api import GROUP
from finetune_operator.kube.kinds import JOB, JOB_LABEL, POD, Key, Kind, Object, controller_uid, key_of

TOMBSTONES = 10_000
POD_STATUS = ("phase", "reason", "message", "startTime", "conditions")
"""What is kept of the status of a FineTuneJob's pod, beside the states of its containers."""
Index = tuple[str, ...]


class Store:
    """Objects by key. What it returns is shared: never change it."""

    def __init__(self) -> None:
        self._objects: dict[str, dict[Key, Object]] = defaultdict(dict)
        self._index: dict[Index, set[Key]] = defaultdict(set)
        self._deleted: OrderedDict[str, None] = OrderedDict()

    def get(self, kind: Kind, namespace: str, name: str) -> Object | None:
        """The object, or None."""
        return self._objects[kind.name].get((kind.name, namespace, name))

    def all(self, kind: Kind, namespace: str | None = None) -> list[Object]:
        """Every object of a kind, by name."""
        objects = self._objects[kind.name]
        return [objects[key] for key in sorted(objects) if namespace in (None, key[1])]

    def owned(self, kind: Kind, uid: str) -> list[Object]:
        """The objects of a kind whose controller has this uid, by name."""
        return self._find((kind.name, "owner", uid))

    def labelled(self, kind: Kind, namespace: str, label: str, value: str) -> list[Object]:
        """The objects of a kind with this value of one of our labels (``finetune-operator.io/…``), by name."""
        return self._find((kind.name, "label", namespace, label, value))

    def put(self, kind: Kind, item: Object) -> bool:
        """Take in a state of an object; False if it is not newer than what is known, or of an object known to be deleted."""
        key = key_of(kind, item)
        known = self._objects[kind.name].get(key)
        if item["metadata"]["uid"] in self._deleted:
            return False
        if known is not None and _version(item) <= _version(known):
            return False
        if known is not None:
            self._unlink(kind, key, known)
        self._objects[kind.name][key] = item = slim(kind, item)
        for index in _indexes(kind, item):
            self._index[index].add(key)
        return True

    def remove(self, kind: Kind, item: Object) -> bool:
        """Forget an object that was deleted; False if it is not known."""
        uid = item["metadata"]["uid"]
        self._deleted[uid] = None
        if len(self._deleted) > TOMBSTONES:
            self._deleted.popitem(last=False)
        key = key_of(kind, item)
        known = self._objects[kind.name].get(key)
        if known is None or known["metadata"]["uid"] != uid:
            return False
        self._unlink(kind, key, known)
        del self._objects[kind.name][key]
        return True

    def replace(self, kind: Kind, namespace: str | None, items: Iterable[Object], version: str) -> list[Object]:
        """Take in a whole list (of one namespace, or of all) of that resource version; returns what changed or was deleted unseen."""
        listed = {item["metadata"]["uid"]: item for item in items}
        changed = [item for item in listed.values() if self.put(kind, item)]
        gone = [
            item
            for item in self.all(kind, namespace)
            if item["metadata"]["uid"] not in listed and _version(item) <= int(version)
        ]
        return changed + [item for item in gone if self.remove(kind, item)]

    def _find(self, index: Index) -> list[Object]:
        objects = self._objects[index[0]]
        return [objects[key] for key in sorted(self._index.get(index, ()))]

    def _unlink(self, kind: Kind, key: Key, item: Object) -> None:
        for index in _indexes(kind, item):
            self._index[index].discard(key)
            if not self._index[index]:
                del self._index[index]


def slim(kind: Kind, item: Object) -> Object:
    """The object without what no decision needs: thousands of finished Jobs and pods are kept."""
    meta = {name: value for name, value in item["metadata"].items() if name != "managedFields"}
    small = {**item, "metadata": meta}
    if JOB_LABEL in meta.get("labels", {}):
        status = item.get("status", {})
        if kind is POD:
            small["spec"] = {"nodeName": item.get("spec", {}).get("nodeName")}
            small["status"] = {name: value for name, value in status.items() if name in POD_STATUS}
            small["status"]["containerStatuses"] = [
                {"state": entry.get("state", {})} for entry in status.get("containerStatuses", ())
            ]
        elif kind is JOB:
            small["spec"] = {}
            small["status"] = {"conditions": status.get("conditions", [])}
    return small


def _version(item: Object) -> int:
    """Kubernetes' resource versions are numbers that grow with every write of the resource."""
    return int(item["metadata"]["resourceVersion"])


def _indexes(kind: Kind, item: Object) -> list[Index]:
    meta = item["metadata"]
    found: list[Index] = [
        (kind.name, "label", meta.get("namespace", ""), label, value)
        for label, value in meta.get("labels", {}).items()
        if label.startswith(f"{GROUP}/")
    ]
    owner = controller_uid(item)
    return [*found, (kind.name, "owner", owner)] if owner else found
