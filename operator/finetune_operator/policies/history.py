"""Choose the attempts and the warnings that stay in status.

The kept attempts are enough to decide on the next one, and to explain the last ones.
"""

from collections.abc import Sequence

from finetune_api.finetunejob import Attempt
from finetune_api.limits import ATTEMPT_MESSAGE_CHARACTERS, STATUS_ATTEMPTS, STATUS_WARNINGS, truncate
from finetune_api.reasons import Reason


def trim(attempts: Sequence[Attempt]) -> list[Attempt]:
    """Drop the oldest of too many attempts that the cluster or a suspension ended.

    All others stay: they count against a budget.
    """
    surplus = len(attempts) - STATUS_ATTEMPTS
    kept_attempts = []
    for attempt in attempts[:-1]:
        if surplus > 0 and attempt.reason in (Reason.PREEMPTED, Reason.NODE_ERROR, Reason.SUSPENDED):
            surplus -= 1
        else:
            kept_attempts.append(attempt)
    return [*kept_attempts, *attempts[-1:]]


def trim_warnings(warnings: Sequence[str]) -> list[str]:
    """Keep each warning once; of too many the first, which the preflight gave, and the newest."""
    distinct = list(dict.fromkeys(truncate(warning, ATTEMPT_MESSAGE_CHARACTERS) for warning in warnings))
    half = STATUS_WARNINGS // 2
    return distinct if len(distinct) <= STATUS_WARNINGS else distinct[:half] + distinct[-half:]
