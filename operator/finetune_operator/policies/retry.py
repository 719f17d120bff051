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
    too_large: bool = False
    """It needed more memory than there is, and the ladder (finetune_api.ladder) is what can mend that."""


@dataclass(frozen=True)
class RetryAt:
    """The next attempt may begin at this moment."""

    at: datetime


@dataclass(frozen=True)
class GiveUp:
    """No further attempt; ``why`` ends the sentence that begins with what happened."""

    why: str


def decide(
    endings: Sequence[Ending], retries: Retries, first_backoff: float, end_of_ladder: str | None = None
) -> RetryAt | GiveUp:
    """What follows the newest of these endings.

    ``endings`` has every attempt that ended otherwise than by preemption; of the preempted ones it may lack the oldest: the numbers tell how many there were.
    ``end_of_ladder`` says why nothing can be made smaller any more; None while something can.
    """
    last = endings[-1]
    if last.reason in USER_ERRORS:
        return GiveUp("another attempt with the same spec would fail in the same way")
    too_large = sum(ending.too_large for ending in endings)
    if last.too_large:
        if end_of_ladder is not None:
            return GiveUp(end_of_ladder)
        if too_large > retries.on_out_of_memory:
            return GiveUp(f"failurePolicy.retries.onOutOfMemory ({retries.on_out_of_memory}) is used up")
        return RetryAt(last.at)
    errors = sum(ending.reason is not Reason.PREEMPTED for ending in endings) - too_large
    if last.reason is Reason.PREEMPTED:
        preemptions = last.number - errors - too_large
        if preemptions > retries.on_preemption:
            return GiveUp(f"failurePolicy.retries.onPreemption ({retries.on_preemption}) is used up")
        return RetryAt(last.at)
    if errors > retries.on_error:
        return GiveUp(f"failurePolicy.retries.onError ({retries.on_error}) is used up")
    return RetryAt(last.at + timedelta(seconds=min(first_backoff * 2 ** (errors - 1), LAST_BACKOFF_SECONDS)))
