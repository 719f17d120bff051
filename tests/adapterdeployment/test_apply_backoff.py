"""How long the operator waits before it applies again what somebody else has removed."""

from itertools import pairwise

from finetune_operator.policies.apply_backoff import CALM, FIRST_PAUSE, FREE, LAST_PAUSE, ApplyBackoff


def play(backoff: ApplyBackoff, seconds: float, begin: float = 0.0) -> list[float]:
    """Return when it was applied, if somebody takes it away at once, each time."""
    times, now = [], begin
    while now < begin + seconds:
        wait = backoff.delay("web", "v1", now)
        if wait == 0:
            backoff.note("web", "v1", now)
            times.append(now)
        now += max(wait, 0.5)
    return times


def test_the_pauses_grow_up_to_a_limit() -> None:
    times = play(ApplyBackoff(), 5 * 3600)
    pauses = [later - earlier for earlier, later in pairwise(times)]
    assert pauses[:FREE] == [0.5, 0.5, FIRST_PAUSE]
    assert pauses[FREE : FREE + 4] == [2 * FIRST_PAUSE, 4 * FIRST_PAUSE, 8 * FIRST_PAUSE, 16 * FIRST_PAUSE]
    assert set(pauses[FREE + 4 :]) == {LAST_PAUSE}


def test_after_a_calm_time_there_is_no_pause() -> None:
    backoff = ApplyBackoff()
    last = play(backoff, 3600)[-1]
    pauses = play(backoff, 10, begin=last + LAST_PAUSE + CALM)
    assert len(pauses) == FREE


def test_others_do_not_wait_and_what_is_gone_is_forgotten() -> None:
    backoff = ApplyBackoff()
    play(backoff, 10)
    assert backoff.delay("web", "v1", 10.0) > 0
    assert backoff.delay("other", "v1", 10.0) == 0
    backoff.forget("web")
    assert backoff.delay("web", "v1", 10.0) == 0


def test_another_version_is_applied_at_once() -> None:
    backoff = ApplyBackoff()
    play(backoff, 10)
    assert backoff.delay("web", "v2", 10.0) == 0
    backoff.note("web", "v2", 10.0)
    assert backoff.delay("web", "v2", 10.0) == 0
