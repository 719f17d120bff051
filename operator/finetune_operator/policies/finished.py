"""Decide whether a FineTuneJob has finished.

Changes of the children of a finished job have no effect.
"""

from datetime import datetime, timedelta

from finetune_api.conditions import ConditionType
from finetune_api.timestamps import parse_timestamp
from finetune_operator.conditions import find_in
from finetune_operator.kube.kinds import Object, is_being_deleted
from finetune_operator.policies.deletion import change_finalizers, needs_finalizer


def is_finished(resource: Object) -> bool:
    """Return whether the FineTuneJob succeeded, or failed without another attempt to come."""
    succeeded = find_in(resource, ConditionType.SUCCEEDED)
    return succeeded is not None and succeeded["status"] in ("True", "False")


def is_merging(resource: Object) -> bool:
    """Return whether the finished adapter is still to be merged into its base."""
    merged = find_in(resource, ConditionType.MERGED)
    return merged is not None and merged["status"] == "Unknown"


def is_up_to_date(resource: Object) -> bool:
    """Return whether nothing is left to do for a FineTuneJob.

    It is finished and not merging, its status is of the newest generation, it has the finalizer that it needs, and it
    is neither being deleted nor due to expire.
    """
    observed = resource.get("status", {}).get("observedGeneration")
    is_current = (
        is_finished(resource) and not is_merging(resource) and bool(observed == resource["metadata"].get("generation"))
    )
    stays = find_expiry(resource) is None and not is_being_deleted(resource)
    return is_current and stays and change_finalizers(resource, needs_finalizer(resource)) is None


def find_expiry(resource: Object) -> datetime | None:
    """Find when a FineTuneJob is to be deleted, by spec.ttlSecondsAfterFinished; None if it is not.

    The time begins when it has finished and its adapter is merged, or is not merged after all.
    """
    seconds = resource.get("spec", {}).get("ttlSecondsAfterFinished")
    ends = [find_in(resource, kind) for kind in (ConditionType.SUCCEEDED, ConditionType.MERGED)]
    if seconds is None or not is_finished(resource) or is_merging(resource):
        return None
    finished = max(parse_timestamp(end["lastTransitionTime"]) for end in ends if end is not None)
    return finished + timedelta(seconds=seconds)
