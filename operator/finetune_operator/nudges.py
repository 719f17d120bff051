"""Which keys a change of an object may concern. Too many costs a pass that does nothing; too few is a bug."""

from finetune_operator.adapter_nudges import serving_groups
from finetune_operator.kube.kinds import FINETUNE_JOB, JOB, POD, Key, Kind, Object, finetune_job_of, key_of
from finetune_operator.store import Store


def keys(kind: Kind, item: Object, store: Store) -> list[Key]:
    """The keys to look at after this object changed, appeared or was deleted."""
    meta = item["metadata"]
    parent = finetune_job_of(item) if kind in (JOB, POD) else None
    if parent is not None:
        return [(FINETUNE_JOB.name, meta["namespace"], parent)]
    own = [key_of(kind, item)] if kind is FINETUNE_JOB else []
    return own + serving_groups(kind, item, store)
