"""Pods that Kubernetes takes away: the Job replaces them, and each pod that ran is an attempt."""

from dataclasses import replace
from typing import Any

import pytest

from finetune_api.messages import ProgressReport
from finetune_api.reasons import EXIT_CODES, Reason
from finetune_operator.policies.disruption import is_replaced
from finetune_operator.reconcile.finetunejob.plan import make_plan
from tests.operator.fake_cluster import SETTINGS, FakeCluster, disrupted, pod, running, terminated
from tests.operator.lives import CHECKPOINT, after_preflight, in_training, reasons, trainer
from tools.testing.operator_messages import PROGRESS, SUCCEEDED


@pytest.mark.parametrize(
    ("name", "item", "replaced"),
    [
        ("it saved a checkpoint", disrupted(40, trainer("Preempted")), True),
        ("killed by SIGTERM", disrupted(143), True),
        ("killed at the end of its grace period", disrupted(137), True),
        (
            "it never started",
            {**pod(phase="Failed"), "status": disrupted()["status"] | {"containerStatuses": []}},
            True,
        ),
        ("its loss diverged meanwhile", disrupted(EXIT_CODES[Reason.LOSS_DIVERGED]), False),
        ("it was done", {**disrupted(), "status": disrupted()["status"] | {"phase": "Succeeded"}}, False),
        ("nobody takes it away", terminated(40, trainer("Preempted"), deleted=True), False),
    ],
)
def test_the_job_replaces_a_pod_that_is_taken_away_unless_it_ended_for_its_own_reason(
    name: str, item: dict[str, Any], replaced: bool
) -> None:
    assert is_replaced(item, "trainer") is replaced, name


def numbers(cluster: FakeCluster) -> list[int]:
    return [attempt["number"] for attempt in cluster.resource["status"]["attempts"]]


def test_one_job_stays_for_all_pods_that_replace_one_another() -> None:
    cluster = in_training()
    for number in (1, 2, 3):
        cluster.play(disrupted(40, trainer("Preempted", checkpoint=CHECKPOINT)))
        assert cluster.condition("Running") == ("False", "Retrying")
        assert f"Attempt {number + 1}: Its Job replaces the pod" in cluster.message("Ready")
        assert cluster.resource["status"]["phase"] == "Retrying"
        cluster.play(running())
        assert cluster.condition("Running") == ("True", "Training")
    cluster.play(terminated(0, SUCCEEDED))
    assert cluster.created == ["a-preflight", "a-train-1"]
    assert reasons(cluster) == ["Preempted", "Preempted", "Preempted", "Succeeded"]
    assert numbers(cluster) == [1, 2, 3, 4]
    pods = [attempt["podUid"] for attempt in cluster.resource["status"]["attempts"]]
    assert len(set(pods)) == 4
    assert cluster.events.count("AttemptFailed") == 3
    assert cluster.events.count("AttemptStarted") == 4


def test_what_happened_while_the_operator_was_down_is_told_by_the_pods_that_are_left() -> None:
    cluster = in_training()
    for _ in range(2):  # node-pressure evictions leave their pods
        cluster.set_pod(disrupted(143, deleted=False))
        cluster.set_pod(running())
    cluster.settle()
    assert reasons(cluster) == ["Preempted", "Preempted", None]
    assert cluster.events.count("AttemptFailed") == 2
    assert cluster.events.count("AttemptStarted") == 2, "of the first and of the last attempt"
    cluster.settle()
    assert numbers(cluster) == [1, 2, 3]


@pytest.mark.parametrize("vanish", [False, True])
def test_evicted_pods_that_stay_are_counted_once_however_many_there_are(vanish: bool) -> None:
    cluster = in_training(failurePolicy={"retries": {"onPreemption": 1000}})
    for number in range(1, 31):
        cluster.play(disrupted(143, deleted=vanish and number > 5))
        cluster.wait(60)
        cluster.play(pod())
        cluster.play(running())
    assert numbers(cluster)[-1] == 31
    assert cluster.created == ["a-preflight", "a-train-1"]


def test_a_pod_that_vanished_while_the_operator_was_down_was_a_run() -> None:
    cluster = in_training()
    cluster.pods.pop("a-train-1")
    cluster.set_pod(running())
    cluster.settle()
    assert reasons(cluster) == ["Preempted", None]
    assert "nobody saw how it ended" in cluster.resource["status"]["attempts"][0]["message"]
    assert cluster.created == ["a-preflight", "a-train-1"]


def test_a_replaced_pod_that_failed_while_the_operator_was_down_is_told_and_decides_what_follows() -> None:
    cluster = in_training(training={"maxSteps": 10, "perDeviceBatchSize": 4})
    cluster.pods.pop("a-train-1")
    cluster.set_pod(terminated(31, trainer("OutOfMemory")))
    cluster.settle()
    assert reasons(cluster) == ["Preempted", "OutOfMemory", None]
    assert cluster.created[-1] == "a-train-2"
    assert cluster.resource["status"]["attempts"][2]["adjustments"]


def test_a_pod_that_is_replaced_before_it_ran_was_no_attempt() -> None:
    cluster = after_preflight(failurePolicy={"retries": {"onPreemption": 0}})
    for _ in range(3):
        cluster.play(pod())
        cluster.pods.pop("a-train-1")
        cluster.settle()
    cluster.play(running())
    assert reasons(cluster) == [None]


def test_the_pause_before_a_pod_is_replaced_is_no_time_in_which_it_is_awaited() -> None:
    cluster = in_training(pendingDeadlineSeconds=60)
    cluster.play(disrupted())
    cluster.wait(320)
    cluster.settle()
    assert cluster.requeue_after == 60, "it is looked for, seldom"
    cluster.play(pod())
    assert cluster.requeue_after == 3
    cluster.wait(59)
    cluster.settle()
    assert cluster.condition("Stalled") is None
    cluster.wait(1)
    cluster.settle()
    assert cluster.condition("Stalled") == ("True", "ContainerNotStarted")


def test_the_job_is_deleted_when_the_budget_of_preemptions_is_used_up() -> None:
    cluster = in_training(failurePolicy={"retries": {"onPreemption": 1}})
    cluster.play(disrupted())
    cluster.play(running())
    cluster.set_pod(disrupted())
    cluster.set_pod(running())  # the Job has replaced it already
    cluster.settle()
    assert reasons(cluster) == ["Preempted", "Preempted"]
    assert cluster.condition("Succeeded") == ("False", "Preempted")
    assert "onPreemption (1) is used up" in cluster.message("Succeeded")
    assert "a-train-1" not in cluster.jobs, "its next pod must not train"
    assert "deletionTimestamp" in cluster.pods["a-train-1"]["metadata"]


def test_a_job_that_ends_though_it_was_to_replace_a_pod_is_followed_by_another_one() -> None:
    cluster = in_training()
    cluster.play(disrupted())
    assert reasons(cluster) == ["Preempted", None]
    cluster.end_job("a-train-1", "Failed")
    cluster.settle()
    assert cluster.created[-1] == "a-train-2"
    assert reasons(cluster) == ["Preempted", None], "without a pod it was no attempt"
    cluster.jobs.pop("a-train-2")
    cluster.settle()
    assert reasons(cluster) == ["Preempted", "Preempted", None], "but whoever deletes each Job uses up the budget"


def test_a_suspension_between_two_pods_deletes_the_job() -> None:
    cluster = in_training()
    cluster.play(disrupted())
    cluster.set_spec(suspend=True)
    cluster.settle()
    assert "a-train-1" not in cluster.jobs
    assert cluster.condition("Suspended") == ("True", "Suspended")
    cluster.set_spec(suspend=False)
    cluster.settle()
    assert cluster.created[-1] == "a-train-2"


def test_a_smaller_job_replaces_one_that_would_go_on_with_the_same_spec() -> None:
    cluster = in_training()
    cluster.play(disrupted(137, trainer("OutOfMemory")))
    assert reasons(cluster) == ["OutOfMemory", None]
    assert "a-train-1" not in cluster.jobs
    assert cluster.created[-1] == "a-train-2"


def test_a_trainer_that_finished_while_its_pod_was_taken_away_is_done() -> None:
    cluster = in_training()
    finished_pod = disrupted(0, SUCCEEDED)
    cluster.play(finished_pod)
    assert cluster.condition("Succeeded") == ("True", "AdapterVerified")
    assert "a-train-1" in cluster.jobs, "with the log of its pod"


@pytest.mark.parametrize("edit", [{"parallelism": 2}, {"parallelism": 0}, {"backoffLimit": 6}])
def test_a_job_that_somebody_changed_is_deleted_and_the_next_one_waits_for_its_pods(edit: dict[str, int]) -> None:
    cluster = in_training()
    cluster.jobs["a-train-1"]["spec"] = edit
    cluster.settle()
    assert "a-train-1" not in cluster.jobs
    assert cluster.created == ["a-preflight", "a-train-1"], "its pod still saves a checkpoint"
    name, value = next(iter(edit.items()))
    assert f"Somebody changed the Job a-train-1 (spec.{name}: {value})" in cluster.told["JobEdited", "a-train-1"]
    cluster.stop_pods(terminated(40, trainer("Preempted"), deleted=True))
    cluster.settle()
    assert reasons(cluster) == ["Preempted", None]
    assert cluster.created[-1] == "a-train-2"


def test_progress_is_that_of_the_pod_that_runs_now() -> None:
    cluster = in_training()
    before = cluster.pods["a-train-1"]["metadata"]["uid"]
    cluster.play(disrupted(deleted=False))
    cluster.play(running())
    now = cluster.pods["a-train-1"]["metadata"]["uid"]
    for step, uid in ((7, now), (9, before)):
        report = ProgressReport.model_validate({"progress": {**PROGRESS, "step": step}})
        observed = replace(cluster.observed(), progress_reports={uid: report})
        shown = make_plan(observed, cluster.now, SETTINGS).status.get("progress", {})
        assert (shown.get("step") == step) is (uid == now)
