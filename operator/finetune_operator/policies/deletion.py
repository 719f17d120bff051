"""Decide whether a FineTuneJob has our finalizer. Pure.

The finalizer keeps a deleted FineTuneJob until its objects in S3 are deleted.
"""

from finetune_api import GROUP
from finetune_operator.kube.kinds import Object

FINALIZER = f"{GROUP}/delete-output"
"""Finalizer of FineTuneJobs with ``output.deletionPolicy: Delete``; they have it before their first pod starts."""
GARBAGE_COLLECTION = frozenset({"foregroundDeletion", "orphan"})
"""Finalizers with which the garbage collector deletes or orphans the children of an object that is being deleted."""


def has_finalizer(resource: Object) -> bool:
    """Return whether our finalizer keeps the FineTuneJob."""
    return FINALIZER in resource["metadata"].get("finalizers", ())


def is_garbage_collected(resource: Object) -> bool:
    """Return whether the garbage collector still handles children of the object. It would handle a new one, too."""
    return not GARBAGE_COLLECTION.isdisjoint(resource["metadata"].get("finalizers", ()))


def deletes_output(resource: Object) -> bool:
    """Return whether the objects in S3 are deleted with the FineTuneJob; its spec need not be valid."""
    output = resource.get("spec", {}).get("output")
    return isinstance(output, dict) and output.get("deletionPolicy") == "Delete"


def needs_finalizer(resource: Object, *, is_starting: bool = False) -> bool:
    """Return whether a FineTuneJob must be cleaned up when it is deleted: a pod has run, or is about to."""
    status = resource.get("status") or {}
    return deletes_output(resource) and bool(is_starting or status.get("preflights") or status.get("attempts"))


def change_finalizers(resource: Object, needed: bool) -> list[str] | None:
    """Return the finalizers that the FineTuneJob is to have; None if it has them."""
    before = resource["metadata"].get("finalizers", [])
    if needed is (FINALIZER in before):
        return None
    return [*before, FINALIZER] if needed else [name for name in before if name != FINALIZER]
