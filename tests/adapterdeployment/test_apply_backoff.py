"""How long the operator waits with what somebody else takes away."""

from itertools import pairwise

from finetune_operator.policies.apply_backoff import CALM, FIRST_PAUSE, FREE, LAST_PAUSE, ApplyBackoff


def play(backoff: ApplyBackoff, seconds: float, begin: float = 0.0) -> list[float]:
    """Return when it was applied, if somebody takes it away at once, each time."""
    times, now = [], begin
    while now < begin + seconds:
        wait = backoff.delay("web", now)
        if wait == 0:
            backoff.note("web", now)
            times.append(now)
        now += max(wait, 0.5)
    return times


def test_the_pauses_grow_up_to_a_limit() -> None:
    times = play(ApplyBackoff(), 5 * 3600)
    pauses = [later - earlier for earlier, later in pairwise(times)]
    assert pauses[:FREE] == [0.5, 0.5, FIRST_PAUSE]
    assert pauses[FREE : FREE + 4] == [2 * FIRST_PAUSE, 4 * FIRST_PAUSE, 8 * FIRST_PAUSE, 16 * FIRST_PAUSE]
    assert set(pauses[FREE + 4 :]) == {LAST_PAUSE}


def test_it_goes_on_at_once_when_it_was_left_alone() -> None:
    backoff = ApplyBackoff()
    last = play(backoff, 3600)[-1]
    again = play(backoff, 10, begin=last + LAST_PAUSE + CALM)
    assert len(again) == FREE


def test_others_do_not_wait_and_what_is_gone_is_forgotten() -> None:
    backoff = ApplyBackoff()
    play(backoff, 10)
    assert backoff.delay("web", 10.0) > 0
    assert backoff.delay("other", 10.0) == 0
    backoff.forget("web")
    assert backoff.delay("web", 10.0) == 0
