"""Which keys a change of an object may concern. Too many costs a pass that does nothing; too few is a bug."""

from finetune_operator.adapter_nudges import serving_groups
from finetune_operator.kube.kinds import FINETUNE_JOB, JOB, JOB_LABEL, POD, Key, Kind, Object, key_of
from finetune_operator.store import Store


def keys(kind: Kind, item: Object, store: Store) -> list[Key]:
    """The keys to look at after this object changed, appeared or was deleted."""
    meta = item["metadata"]
    if kind in (JOB, POD) and JOB_LABEL in meta.get("labels", {}):
        return [(FINETUNE_JOB.name, meta["namespace"], meta["labels"][JOB_LABEL])]
    own = [key_of(kind, item)] if kind is FINETUNE_JOB else []
    return own + serving_groups(kind, item, store)
