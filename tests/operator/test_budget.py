"""How often a status write that only carries progress may happen."""

from finetune_operator.policies.budget import WriteBudget


def test_one_object_waits_for_its_interval() -> None:
    budget = WriteBudget(per_second=10, interval=5)
    assert budget.delay("a", 100.0) == 0
    assert budget.delay("a", 102.0) == 3
    assert budget.delay("b", 102.0) == 0
    assert budget.delay("a", 105.0) == 0


def test_all_objects_share_the_rate() -> None:
    budget = WriteBudget(per_second=10, interval=5)
    writes = sum(budget.delay(f"job-{number}", 100 + second) == 0 for second in range(10) for number in range(1000))
    assert writes == 20 + 9 * 10, "a burst of two seconds' worth, then ten a second"


def test_who_waits_is_told_when_to_ask_again() -> None:
    budget = WriteBudget(per_second=2, interval=1)
    now = 100.0
    assert [budget.delay(number, now) for number in range(4)] == [0, 0, 0, 0]
    wait = budget.delay("late", now)
    assert wait > 0
    assert budget.delay("late", now + wait) == 0
