"""Which attempts stay in status: enough to decide on the next one and to explain the last ones."""

from typing import Any

from finetune_api.reasons import Reason

KEEP = 20


def trim(attempts: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The newest attempts, without the oldest preempted ones: those that failed otherwise count against a budget and stay."""
    surplus = len(attempts) - KEEP
    kept = []
    for attempt in attempts[:-1]:
        if surplus > 0 and attempt.get("reason") == Reason.PREEMPTED:
            surplus -= 1
        else:
            kept.append(attempt)
    return kept + attempts[-1:]
