"""Choose the attempts that stay in status.

They must be enough to decide on the next one, and to explain the last ones.
"""

from collections.abc import Sequence

from finetune_api.finetunejob import Attempt
from finetune_api.limits import STATUS_ATTEMPTS
from finetune_api.reasons import Reason


def trim(attempts: Sequence[Attempt]) -> list[Attempt]:
    """Drop the oldest preempted attempts of too many. All others stay: they count against a budget."""
    surplus = len(attempts) - STATUS_ATTEMPTS
    kept = []
    for attempt in attempts[:-1]:
        if surplus > 0 and attempt.reason == Reason.PREEMPTED:
            surplus -= 1
        else:
            kept.append(attempt)
    return [*kept, *attempts[-1:]]
