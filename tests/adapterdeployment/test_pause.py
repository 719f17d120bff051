"""strategy.pauseSeconds: time between a pod that took the version and the next one."""

from datetime import datetime, timedelta

import pytest

from finetune_api.reasons import Reason
from finetune_operator.policies.rollout import PodView, measure_pause
from finetune_operator.reconcile.adapterdeployment.model import Observed
from finetune_operator.reconcile.adapterdeployment.plan import make_plan
from tests.adapterdeployment.groups import (
    NOW,
    SETTINGS,
    V1,
    V2,
    adapter,
    add_reports,
    build_source,
    edit,
    group,
    make_pass,
    read_conditions,
    read_entry,
)

SERVED = make_pass(add_reports(make_pass(group(adapter())), "abc", V1, V1))
BEGUN = make_pass(edit(SERVED, adapter=build_source(V2), strategy={"pauseSeconds": 60, "progressDeadlineSeconds": 30}))


def after(seconds: float) -> datetime:
    return NOW + timedelta(seconds=seconds)


def read_message(observed: Observed) -> str:
    conditions = observed.resources[0]["status"]["conditions"]
    return next(str(item["message"]) for item in conditions if item["type"] == "Ready")


FIRST = make_pass(add_reports(BEGUN, "a", V2, V2), after(10))
"""The first pod serves the second version since the tenth second."""


def test_the_first_pod_takes_the_version_at_once() -> None:
    assert read_entry(BEGUN) == (V2, V1, ["web-a"])


def test_the_next_one_takes_it_after_the_pause() -> None:
    assert read_entry(FIRST) == (V2, V1, ["web-a"])
    assert "60 s after the one before (spec.strategy.pauseSeconds)" in read_message(FIRST)
    assert read_entry(make_pass(FIRST, after(69))) == (V2, V1, ["web-a"])
    assert make_plan(FIRST, after(67), SETTINGS).requeue_after == 3
    assert read_entry(make_pass(FIRST, after(70))) == (V2, V1, ["web-a", "web-b"])


def test_a_pause_is_no_lack_of_progress() -> None:
    assert "Reconciling" in read_conditions(make_pass(FIRST, after(69)))
    second = make_pass(FIRST, after(70))
    assert "Reconciling" in read_conditions(make_pass(second, after(99)))
    assert "Stalled" in read_conditions(make_pass(second, after(100)))


def test_a_second_pass_changes_nothing() -> None:
    assert make_pass(FIRST, after(30)) == FIRST


def test_a_rollback_does_not_pause() -> None:
    bad = {"state": "Refused", "reason": Reason.PROOF_FAILED, "message": "m"}
    second = make_pass(FIRST, after(70))
    observed = make_pass(make_pass(add_reports(second, "b", V2, V1, **bad), after(71)), after(71))
    assert read_entry(observed) == (V1, V2, ["web-b", "web-c"])
    observed = make_pass(add_reports(observed, "b", V1, V1), after(72))
    assert read_entry(observed) == (V1, V2, ["web-a", "web-b", "web-c"])


NEW, OLD = PodView("a", True, False, False, True), PodView("b", False, False, True, True)


@pytest.mark.parametrize(
    ("pods", "updated_before", "progressed_at", "expected"),
    [
        ([OLD, OLD], 0, "2026-01-02T03:04:05Z", 0),
        ([NEW, OLD], 0, "2026-01-01T00:00:00Z", 60),
        ([NEW, OLD], 1, "2026-01-02T03:03:55Z", 50),
        ([NEW, OLD], 1, "2026-01-01T00:00:00Z", 0),
        ([NEW, OLD], 1, None, 60),
    ],
)
def test_the_rest_of_the_pause(
    pods: list[PodView], updated_before: int, progressed_at: str | None, expected: float
) -> None:
    assert measure_pause(pods, 60, updated_before, progressed_at, NOW) == expected
