"""Whether, and when, a failed attempt is repeated: by the class of what ended it."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from finetune_api.finetunejob import Retries
from finetune_api.reasons import USER_ERRORS, Reason

LAST_BACKOFF_SECONDS = 600.0


@dataclass(frozen=True)
class Ending:
    """How one attempt ended."""

    number: int
    reason: Reason
    at: datetime


@dataclass(frozen=True)
class RetryAt:
    """The next attempt may begin at this moment."""

    at: datetime


@dataclass(frozen=True)
class GiveUp:
    """No further attempt; ``why`` ends the sentence that begins with what happened."""

    why: str


def decide(endings: Sequence[Ending], retries: Retries, first_backoff: float) -> RetryAt | GiveUp:
    """What follows the newest of these endings.

    ``endings`` has every attempt that ended otherwise than by preemption; of the preempted ones it may lack the oldest: the numbers tell how many there were.
    """
    last = endings[-1]
    if last.reason in USER_ERRORS:
        return GiveUp("another attempt with the same spec would fail in the same way")
    errors = sum(ending.reason is not Reason.PREEMPTED for ending in endings)
    if last.reason is Reason.PREEMPTED:
        preemptions = last.number - errors
        if preemptions > retries.on_preemption:
            return GiveUp(f"failurePolicy.retries.onPreemption ({retries.on_preemption}) is used up")
        return RetryAt(last.at)
    if errors > retries.on_error:
        return GiveUp(f"failurePolicy.retries.onError ({retries.on_error}) is used up")
    return RetryAt(last.at + timedelta(seconds=min(first_backoff * 2 ** (errors - 1), LAST_BACKOFF_SECONDS)))
