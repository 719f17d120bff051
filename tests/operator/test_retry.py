"""Whether and when a failed attempt is repeated."""

from dataclasses import replace
from datetime import timedelta

import pytest

from finetune_api.finetunejob import Attempt, Retries
from finetune_api.limits import STATUS_ATTEMPTS
from finetune_api.reasons import USER_ERRORS, Reason
from finetune_operator.policies.history import trim
from finetune_operator.policies.retry import Ending, GiveUp, RetryAt, decide
from tests.operator.fake_cluster import NOW

P, E, U, N = Reason.PREEMPTED, Reason.TRAINER_ERROR, Reason.DATASET_INVALID, Reason.NODE_ERROR


def attempt(number: int, reason: str) -> Attempt:
    return Attempt(number=number, job_name=f"a-train-{number}", reason=reason)


def endings(*reasons: Reason) -> list[Ending]:
    return [Ending(number, reason, NOW) for number, reason in enumerate(reasons, start=1)]


@pytest.mark.parametrize(
    ("name", "reasons", "seconds"),
    [
        ("the first error waits for the first backoff", [E], 10),
        ("the second one for twice as long", [E, E], 20),
        ("a preemption is repeated at once", [P], 0),
        ("a preemption after an error is repeated at once", [E, P], 0),
        ("preemptions do not lengthen the backoff of errors", [P, P, P, E], 10),
        ("an image that cannot be pulled is an error", [Reason.IMAGE_PULL_FAILED], 10),
        ("a failed upload is an error", [Reason.UPLOAD_FAILED], 10),
        ("processes that lost one another are an error", [Reason.NCCL_ERROR], 10),
        ("a node's error waits", [N], 10),
        ("the next one for twice as long", [N, P, N], 20),
        ("errors do not lengthen the backoff of nodes", [E, E, N], 10),
        ("nodes do not lengthen the backoff of errors", [N, N, N, E], 10),
        ("a preemption after a node's error is repeated at once", [N, P], 0),
        ("a stall waits as an error does", [Reason.STALLED, Reason.STALLED], 20),
        ("errors do not lengthen the backoff of stalls", [E, E, Reason.STALLED], 10),
        ("stalls do not lengthen the backoff of errors", [Reason.STALLED, Reason.STALLED, E], 10),
        ("stalls do not spend the budget of preemptions", [*[Reason.STALLED] * 3, *[P] * 20], 0),
        ("host memory is an error", [Reason.HOST_OUT_OF_MEMORY], 10),
    ],
)
def test_repeated(name: str, reasons: list[Reason], seconds: float) -> None:
    assert decide(endings(*reasons), Retries(), 10) == RetryAt(NOW + timedelta(seconds=seconds)), name


@pytest.mark.parametrize(
    ("name", "reasons", "retries", "field"),
    [
        ("the third error is one too many", [E, E, E], Retries(), "onError"),
        ("no retries at all", [E], Retries(on_error=0), "onError"),
        ("preemptions do not spend the budget of errors", [P, E, P, E, E], Retries(), "onError"),
        ("preemptions have a budget of their own", [P, E, P], Retries(on_preemption=1), "onPreemption"),
        ("nodes and preemptions share a budget", [N, P, N], Retries(on_preemption=2), "onPreemption"),
        ("nodes do not spend the budget of errors", [N, N, E, E, E], Retries(), "onError"),
        ("stalls have a budget of their own", [Reason.STALLED] * 4, Retries(), "onStall"),
        ("a user's error", [U], Retries(on_error=20), "same spec"),
        ("a user's error after a preemption", [P, U], Retries(), "same spec"),
    ],
)
def test_given_up(name: str, reasons: list[Reason], retries: Retries, field: str) -> None:
    decision = decide(endings(*reasons), retries, 10)
    assert isinstance(decision, GiveUp), name
    assert field in decision.why


M = Ending(1, Reason.OUT_OF_MEMORY, NOW, too_large=True)


def test_what_did_not_fit_is_tried_again_at_once_as_long_as_something_can_be_made_smaller() -> None:
    errors = [Ending(number, E, NOW) for number in (1, 2)]
    assert decide([*errors, replace(M, number=3)], Retries(), 10) == RetryAt(NOW), "it has a budget of its own"
    assert decide([M, replace(M, number=2)], Retries(on_out_of_memory=1), 10) == GiveUp(
        "failurePolicy.retries.onOutOfMemory (1) is used up"
    )
    assert decide([M], Retries(), 10, "nothing is left") == GiveUp("nothing is left")


def test_what_did_not_fit_is_neither_an_error_nor_a_preemption() -> None:
    after = [M, replace(M, number=2), Ending(3, E, NOW)]
    assert decide(after, Retries(on_error=1), 10) == RetryAt(NOW + timedelta(seconds=10))
    assert decide([*after, Ending(4, P, NOW)], Retries(on_preemption=1), 10) == RetryAt(NOW)


@pytest.mark.parametrize("reason", sorted(USER_ERRORS))
def test_user_errors_are_never_repeated(reason: Reason) -> None:
    assert isinstance(decide(endings(reason), Retries(on_error=20), 10), GiveUp)


def test_the_backoff_is_capped() -> None:
    assert decide(endings(*[E] * 20), Retries(on_error=20), 10) == RetryAt(NOW + timedelta(seconds=600))


def test_preemptions_that_left_the_history_still_count() -> None:
    attempts = [attempt(number, "Preempted") for number in range(1, 31)]
    trimmed = trim(attempts)
    assert len(trimmed) == STATUS_ATTEMPTS
    assert trimmed[-1] == attempts[-1]
    endings = [Ending(entry.number, Reason(entry.reason or ""), NOW) for entry in trimmed]
    assert isinstance(decide(endings, Retries(on_preemption=29), 10), GiveUp)
    assert isinstance(decide(endings, Retries(on_preemption=30), 10), RetryAt)


def test_the_history_keeps_errors_for_the_budget() -> None:
    attempts = [attempt(1, "TrainerError")] + [attempt(number, "Preempted") for number in range(2, 41)]
    assert trim(attempts)[0] == attempts[0]
    assert len(trim(attempts)) == STATUS_ATTEMPTS
