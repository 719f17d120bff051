"""strategy.progressDeadlineSeconds: a roll-out in which no pod makes progress has failed."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest

from finetune_api.reasons import Reason
from finetune_operator.kube.kinds import Object
from finetune_operator.policies.failed_rollout import Progress, find_progress_time, measure_remaining_seconds
from finetune_operator.reconcile.adapterdeployment.model import Observed
from finetune_operator.reconcile.adapterdeployment.plan import make_plan
from finetune_operator.reconcile.adapterdeployment.status import build_updates
from tests.adapterdeployment.groups import (
    NOW,
    SETTINGS,
    V1,
    V2,
    adapter,
    add_reports,
    build_source,
    deployment,
    edit,
    group,
    make_pass,
    pod,
    read_conditions,
    read_entry,
)

EXCEEDED = "ProgressDeadlineExceeded"
SERVED = make_pass(add_reports(make_pass(group(adapter())), "abc", V1, V1))


def after(seconds: float) -> datetime:
    return NOW + timedelta(seconds=seconds)


def begin(**strategy: int) -> Observed:
    """Begin to roll the second version out, at NOW."""
    return make_pass(edit(SERVED, adapter=build_source(V2), strategy=strategy or None))


def read_status(observed: Observed) -> Object:
    status: Object = observed.resources[0]["status"]
    return status


def test_a_rollout_without_progress_is_rolled_back_after_ten_minutes() -> None:
    observed = make_pass(begin(), after(599))
    assert read_conditions(observed)["Reconciling"] == ("True", "RollingOut")
    observed = make_pass(make_pass(observed, after(600)), after(600))
    assert read_conditions(observed)["Stalled"] == ("True", "RolledBack")
    assert read_status(observed)["rollback"]["reason"] == EXCEEDED
    assert "600 s" in read_status(observed)["rollback"]["message"]
    assert read_entry(observed)[0] == V1


def test_the_next_pass_comes_when_the_deadline_is_over() -> None:
    observed = begin(progressDeadlineSeconds=7)
    (update,) = build_updates(observed, make_plan(observed, NOW, SETTINGS), None, after(5))
    assert update.requeue_after == 2


def test_a_pod_that_takes_the_version_is_progress_and_one_that_keeps_trying_is_not() -> None:
    observed = make_pass(add_reports(begin(), "a", V2, V2), after(590))
    assert read_conditions(make_pass(observed, after(1100)))["Reconciling"] == ("True", "RollingOut")
    for second, state in ((700, "Downloading"), (900, "Failed"), (1100, "Downloading")):
        observed = add_reports(observed, "b", V2, V1, state=state, reason=Reason.DOWNLOAD_FAILED, message="no answer")
        observed = make_pass(observed, after(second))
    assert read_conditions(observed)["Reconciling"] == ("True", "RollingOut")
    assert read_status(make_pass(observed, after(1190)))["rollback"]["reason"] == EXCEEDED


def test_without_an_older_version_it_is_stalled_and_continues_as_soon_as_a_pod_makes_progress() -> None:
    observed = make_pass(make_pass(group(adapter())), after(600))
    assert read_conditions(observed)["Stalled"] == ("True", EXCEEDED)
    assert read_conditions(observed)["Ready"] == ("False", EXCEEDED)
    assert [entry["event"] for entry in read_status(observed)["history"]] == ["Failed"]
    observed = make_pass(add_reports(observed, "a", V1, V1), after(700))
    assert read_conditions(observed)["Reconciling"] == ("True", "RollingOut")
    observed = make_pass(add_reports(observed, "bc", V1, V1), after(701))
    assert read_conditions(observed)["Ready"] == ("True", "Serving")
    assert "progressedAt" not in read_status(observed)


def test_without_automatic_rollback_it_is_stalled() -> None:
    observed = make_pass(edit(SERVED, adapter=build_source(V2), rollback={"automatic": False}))
    observed = make_pass(observed, after(600))
    assert read_conditions(observed)["Stalled"] == ("True", EXCEEDED)
    assert read_entry(make_pass(observed, after(601)))[0] == V2


def test_a_pod_within_the_budget_takes_the_version_from_no_other() -> None:
    observed = make_pass(add_reports(begin(maxUnavailable=2), "a", V2, V2))
    observed = make_pass(add_reports(observed, "b", V2, V2))
    observed = add_reports(observed, "c", V2, None, state="Failed", reason=Reason.DOWNLOAD_FAILED, message="no answer")
    observed = make_pass(make_pass(observed), after(600))
    assert read_conditions(observed)["Stalled"] == ("True", EXCEEDED)
    assert "2 of 3 pods" in str(read_status(observed)["conditions"])
    assert "rollback" not in read_status(observed)


@pytest.mark.parametrize(
    "change",
    {
        "the spec is edited": lambda observed: edit(observed, verification={"tolerance": 0.5}),
        "a pod is added": lambda observed: replace(
            observed, workload=deployment(4), pods=(*observed.pods, pod("web-d", ready=False))
        ),
    }.values(),
)
def test_what_restarts_the_deadline(change: object) -> None:
    observed = make_pass(change(begin()), after(500))  # type: ignore[operator]
    assert "Reconciling" in read_conditions(make_pass(observed, after(1099)))
    assert "Stalled" in read_conditions(make_pass(observed, after(1100)))


@pytest.mark.parametrize(
    "observed",
    {
        "it is suspended": edit(begin(), suspend=True),
        "there are no pods": replace(begin(), workload=deployment(0), pods=()),
        "the Deployment is gone": replace(begin(), workload=None, pods=()),
        "every pod served it already, and one restarts": add_reports(SERVED, "b", V1, None, state="Loading"),
    }.values(),
)
def test_no_deadline_while(observed: Observed) -> None:
    observed = make_pass(make_pass(observed), after(10_000))
    assert "Stalled" not in read_conditions(observed)
    assert "progressedAt" not in read_status(observed)


def test_time_in_which_the_operator_was_down_does_not_count() -> None:
    """What the pods did meanwhile is known only when their agents have reported again."""
    restarted = replace(begin(), agent_reports={}, watched_seconds=2.0)
    assert "Reconciling" in read_conditions(make_pass(restarted, after(3600)))
    assert "Stalled" in read_conditions(make_pass(replace(restarted, watched_seconds=600.0), after(4200)))


def test_a_second_pass_changes_nothing() -> None:
    observed = make_pass(begin(), after(10))
    assert make_pass(observed, after(20)) == observed


BEFORE = Progress("d", 1, 1, 2, 3)
AT = "2026-01-02T03:00:00Z"


@pytest.mark.parametrize(
    ("progress", "is_new"),
    [
        (BEFORE, False),
        (replace(BEFORE, updated=0, ready=1), False),
        (replace(BEFORE, updated=2), True),
        (replace(BEFORE, ready=3), True),
        (replace(BEFORE, digest="e"), True),
        (replace(BEFORE, generation=2), True),
        (replace(BEFORE, total=2), True),
    ],
)
def test_what_is_progress(progress: Progress, is_new: bool) -> None:
    assert find_progress_time(BEFORE, progress, AT, NOW) == ("2026-01-02T03:04:05Z" if is_new else AT)


def test_the_remaining_time() -> None:
    now = datetime(2026, 1, 2, 3, 0, 30, tzinfo=UTC)
    assert measure_remaining_seconds(AT, 100, 1000, now) == 70
    assert measure_remaining_seconds(AT, 100, 10, now) == 90
    assert measure_remaining_seconds(AT, 20, 1000, now) == -10


def test_a_restart_of_the_operator_takes_nothing_back() -> None:
    exceeded = make_pass(make_pass(group(adapter())), after(600))
    restarted = replace(exceeded, agent_reports={}, watched_seconds=1.0)
    assert read_status(make_pass(restarted, after(605))) == read_status(exceeded)
