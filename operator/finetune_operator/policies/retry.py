"""Decide whether and when a failed attempt is repeated, by the reason for which it ended. Pure."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from finetune_api.finetunejob import Retries
from finetune_api.reasons import USER_ERRORS, Reason

LAST_BACKOFF_SECONDS = 600.0
BUDGETS: dict[str, str] = {
    Reason.PREEMPTED: "onPreemption",
    Reason.NODE_ERROR: "onPreemption",
    Reason.STALLED: "onStall",
}
"""Fields of failurePolicy.retries that reasons count against; all others count against onError."""


@dataclass(frozen=True)
class Ending:
    """How one attempt ended."""

    number: int
    reason: str
    at: datetime
    too_large: bool = False
    """Whether it needed more memory than there is: then the out-of-memory ladder (finetune_api.ladder) applies."""


@dataclass(frozen=True)
class RetryAt:
    """The next attempt may begin at this time."""

    at: datetime


@dataclass(frozen=True)
class GiveUp:
    """No further attempt; ``why`` follows the words "Not tried again:"."""

    why: str


def decide(
    endings: Sequence[Ending],
    retries: Retries,
    first_backoff: float,
    end_of_ladder: str | None = None,
    suspensions: int = 0,
) -> RetryAt | GiveUp:
    """Decide what follows the newest of these endings.

    Args:
        endings: The finished attempts. The oldest preempted ones may be missing; the numbers show how many there were.
        retries: The budgets of the spec.
        first_backoff: Seconds before the first repetition of an error; they double with each further one.
        end_of_ladder: Why the ladder has no further step; None while it has one.
        suspensions: How many attempts ended because the job was suspended, which costs nothing.
    """
    last = endings[-1]
    if last.reason in USER_ERRORS:
        return GiveUp("another attempt with the same spec would fail in the same way")
    if last.reason is Reason.DEADLINE_EXCEEDED:
        return GiveUp("spec.activeDeadlineSeconds is over")
    if last.reason is Reason.SUSPENDED:
        return RetryAt(last.at)
    if last.too_large and end_of_ladder is not None:
        return GiveUp(end_of_ladder)
    budget = _find_budget(last)
    used = Counter(_find_budget(ending) for ending in endings if ending.reason is not Reason.SUSPENDED)
    used["onPreemption"] = last.number - suspensions - (used.total() - used["onPreemption"])
    allowed = {
        "onError": retries.on_error,
        "onOutOfMemory": retries.on_out_of_memory,
        "onPreemption": retries.on_preemption,
        "onStall": retries.on_stall,
    }[budget]
    if used[budget] > allowed:
        return GiveUp(f"failurePolicy.retries.{budget} ({allowed}) is used up")
    if last.too_large or last.reason is Reason.PREEMPTED:
        return RetryAt(last.at)
    # preemptions, which are repeated at once, do not lengthen the pause after a node's error
    alike = sum(_find_budget(ending) == budget and ending.reason is not Reason.PREEMPTED for ending in endings)
    return RetryAt(last.at + timedelta(seconds=min(first_backoff * 2 ** (alike - 1), LAST_BACKOFF_SECONDS)))


def _find_budget(ending: Ending) -> str:
    """Return the field of failurePolicy.retries that an ending counts against."""
    if ending.too_large:
        return "onOutOfMemory"
    return BUDGETS.get(ending.reason, "onError")
