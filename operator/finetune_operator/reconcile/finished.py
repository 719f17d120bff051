"""Whether a FineTuneJob has come to its end: then nothing is done for it any more, whatever becomes of its children."""

from finetune_api.conditions import ConditionType
from finetune_operator.conditions import find
from finetune_operator.kube.kinds import Object


def is_finished(item: Object) -> bool:
    """Succeeded, or failed for good."""
    succeeded = find(item.get("status", {}).get("conditions", []), ConditionType.SUCCEEDED)
    return succeeded is not None and succeeded["status"] in ("True", "False")


def is_settled(item: Object) -> bool:
    """Finished, and its status speaks of the newest generation: a pass would change nothing."""
    observed = item.get("status", {}).get("observedGeneration")
    return is_finished(item) and bool(observed == item["metadata"].get("generation"))
