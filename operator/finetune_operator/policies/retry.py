"""Decide whether and when a failed attempt is repeated, by the class of what ended it. Pure."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from finetune_api.finetunejob import Retries
from finetune_api.reasons import USER_ERRORS, Reason

LAST_BACKOFF_SECONDS = 600.0
NO_TIME = timedelta()


@dataclass(frozen=True)
class Ending:
    """How one attempt ended."""

    number: int
    reason: str
    at: datetime
    too_large: bool = False
    """It needed more memory than there is, and the out-of-memory ladder (finetune_api.ladder) can change that."""


@dataclass(frozen=True)
class RetryAt:
    """The next attempt may begin at this time."""

    at: datetime


@dataclass(frozen=True)
class GiveUp:
    """No further attempt; ``why`` follows the words "Not tried again:"."""

    why: str


def decide(
    endings: Sequence[Ending], retries: Retries, first_backoff: float, end_of_ladder: str | None = None
) -> RetryAt | GiveUp:
    """Decide what follows the newest of these endings.

    Args:
        endings: The finished attempts. The oldest preempted ones may be missing: the numbers tell how many there were.
        retries: The budgets of the spec.
        first_backoff: Seconds before the first repetition of an error; they double with each further one.
        end_of_ladder: Why the ladder has no further step; None while it has one.
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
    stalls = sum(ending.reason is Reason.STALLED for ending in endings)
    node_errors = sum(ending.reason is Reason.NODE_ERROR for ending in endings)
    preempted = sum(ending.reason is Reason.PREEMPTED for ending in endings)
    errors = len(endings) - preempted - node_errors - too_large - stalls
    if last.reason in (Reason.PREEMPTED, Reason.NODE_ERROR):
        preemptions = last.number - errors - too_large - stalls
        if preemptions > retries.on_preemption:
            return GiveUp(f"failurePolicy.retries.onPreemption ({retries.on_preemption}) is used up")
        return RetryAt(
            last.at + (_backoff(first_backoff, node_errors) if last.reason is Reason.NODE_ERROR else NO_TIME)
        )
    if last.reason is Reason.STALLED:
        repeated, allowed, name = stalls, retries.on_stall, "onStall"
    else:
        repeated, allowed, name = errors, retries.on_error, "onError"
    if repeated > allowed:
        return GiveUp(f"failurePolicy.retries.{name} ({allowed}) is used up")
    return RetryAt(last.at + _backoff(first_backoff, repeated))


def _backoff(first: float, number: int) -> timedelta:
    """Return the pause after the failure of this number, which doubles each time."""
    return timedelta(seconds=min(first * 2 ** (number - 1), LAST_BACKOFF_SECONDS))
