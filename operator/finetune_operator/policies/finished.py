"""Decide whether a FineTuneJob has finished.

Nothing is done for a finished one, whatever happens to its children.
"""

from finetune_api.conditions import ConditionType
from finetune_operator.conditions import find
from finetune_operator.kube.kinds import Object


def is_finished(resource: Object) -> bool:
    """Return whether the FineTuneJob succeeded, or failed without another attempt to come."""
    succeeded = find(resource.get("status", {}).get("conditions", []), ConditionType.SUCCEEDED)
    return succeeded is not None and succeeded["status"] in ("True", "False")


def is_up_to_date(resource: Object) -> bool:
    """Return whether the FineTuneJob is finished and its status is of the newest generation."""
    observed = resource.get("status", {}).get("observedGeneration")
    return is_finished(resource) and bool(observed == resource["metadata"].get("generation"))
