"""A FineTuneJob with ``output.deletionPolicy: Delete`` is deleted: plans that take effect in a fake cluster."""

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from finetune_operator.kube.kinds import ROLE_LABEL
from finetune_operator.policies.deletion import FINALIZER
from finetune_operator.policies.finished import is_up_to_date
from finetune_operator.policies.pod_state import has_ended
from finetune_operator.reconcile.finetunejob.clean_up import plan_blocked_clean_up
from tests.operator.fake_cluster import SETTINGS, FakeCluster, pod, running, terminated
from tools.testing.operator_messages import PREFLIGHT_PASSED, SPEC, SUCCEEDED

OUTPUT: dict[str, Any] = SPEC["output"]
DELETE = {**OUTPUT, "deletionPolicy": "Delete"}
LOCATION = "s3://adapters/ns/a/11111111"
DELETED = {"kind": "CleanUpResult", "reason": "Succeeded", "message": f"7 objects were deleted from {LOCATION}."}
ASKED_TO_STOP = terminated(40, {"kind": "TrainerResult", "reason": "Preempted", "message": "asked to stop"})


def result(reason: str) -> dict[str, Any]:
    return {"kind": "CleanUpResult", "reason": reason, "message": "why"}


def finalizers(cluster: FakeCluster) -> list[str]:
    return list(cluster.resource["metadata"].get("finalizers", []))


def in_preflight() -> FakeCluster:
    cluster = FakeCluster({**SPEC, "output": DELETE})
    cluster.settle()
    return cluster


def in_training() -> FakeCluster:
    cluster = in_preflight()
    cluster.set_pod(terminated(0, PREFLIGHT_PASSED))
    cluster.settle()
    cluster.set_pod(running())
    cluster.settle()
    return cluster


def waiting_for_a_retry() -> FakeCluster:
    cluster = in_training()
    cluster.set_pod(terminated(1, {"kind": "TrainerResult", "reason": "TrainerError", "message": "why"}))
    cluster.settle()
    return cluster


def suspended() -> FakeCluster:
    cluster = in_training()
    cluster.set_spec(suspend=True)
    cluster.settle()
    cluster.stop_pods(ASKED_TO_STOP)
    cluster.settle()
    assert cluster.resource["status"]["phase"] == "Suspended"
    return cluster


def succeeded() -> FakeCluster:
    cluster = in_training()
    cluster.set_pod(terminated(0, SUCCEEDED))
    cluster.settle()
    return cluster


def failed() -> FakeCluster:
    cluster = in_training()
    cluster.set_pod(terminated(34, {"kind": "TrainerResult", "reason": "GateFailed", "message": "why"}))
    cluster.settle()
    assert cluster.resource["status"]["phase"] == "Failed"
    return cluster


PHASES = (in_preflight, in_training, waiting_for_a_retry, suspended, succeeded, failed)


def deleted(make: Any = succeeded) -> FakeCluster:
    """Return a job whose clean-up has its Job."""
    cluster: FakeCluster = make()
    cluster.delete()
    cluster.settle()
    cluster.stop_pods(ASKED_TO_STOP)
    cluster.settle()
    return cluster


@pytest.mark.parametrize("make", PHASES)
def test_in_each_phase_the_pods_end_then_a_clean_up_runs_then_the_object_goes(make: Any) -> None:
    cluster = make()
    assert finalizers(cluster) == [FINALIZER]
    cluster.delete()
    cluster.settle()
    live = [name for name, pod in cluster.pods.items() if not has_ended(pod, pod["metadata"]["labels"][ROLE_LABEL])]
    if live:
        assert "a-clean-up" not in cluster.created
        assert "pod a-pod" in cluster.message("Ready")
    cluster.stop_pods(ASKED_TO_STOP)
    cluster.settle()
    assert cluster.created[-1] == "a-clean-up"
    assert cluster.resource["status"]["phase"] == "Deleting"
    assert cluster.condition("Ready") == ("Unknown", "Deleting")
    cluster.set_pod(running())
    cluster.settle()
    assert not cluster.is_gone
    cluster.set_pod(terminated(0, DELETED))
    cluster.settle()
    assert cluster.is_gone
    assert cluster.told["OutputDeleted", ""] == DELETED["message"]
    assert cluster.created.count("a-clean-up") == 1


def test_the_finalizer_is_there_before_the_first_job() -> None:
    cluster = FakeCluster({**SPEC, "output": DELETE})
    decided = cluster.plan()
    assert decided.finalizers == [FINALIZER]
    cluster.apply(decided)
    assert cluster.created == []
    cluster.settle()
    assert cluster.created == ["a-preflight"]


@pytest.mark.parametrize("spec", [SPEC, {**SPEC, "output": {**OUTPUT, "deletionPolicy": "Retain"}}])
def test_a_job_that_retains_its_objects_has_no_finalizer(spec: dict[str, Any]) -> None:
    cluster = FakeCluster(spec)
    cluster.settle()
    assert cluster.created == ["a-preflight"]
    assert finalizers(cluster) == []


def test_a_job_that_never_ran_needs_no_clean_up() -> None:
    cluster = FakeCluster({**SPEC, "output": {**DELETE, "s3": {"bucket": "B"}}})
    cluster.settle()
    assert cluster.condition("Accepted") == ("False", "SpecInvalid")
    assert finalizers(cluster) == []


def test_a_job_that_could_not_begin_goes_without_a_clean_up() -> None:
    cluster = FakeCluster({**SPEC, "output": DELETE})
    cluster.apply(cluster.plan())
    assert finalizers(cluster) == [FINALIZER]
    cluster.delete()
    cluster.settle()
    assert cluster.is_gone
    assert cluster.created == []
    assert cluster.events == []


def test_the_finalizer_follows_the_field_and_leaves_those_of_others() -> None:
    cluster = FakeCluster()
    cluster.settle()
    cluster.resource["metadata"]["finalizers"] = ["example.com/other"]
    cluster.set_spec(output=DELETE)
    cluster.settle()
    assert finalizers(cluster) == ["example.com/other", FINALIZER]
    cluster.set_spec(output=OUTPUT)
    cluster.settle()
    assert finalizers(cluster) == ["example.com/other"]


def test_the_field_of_a_finished_job_is_followed_too() -> None:
    cluster = succeeded()
    assert is_up_to_date(cluster.resource)
    cluster.set_spec(output=OUTPUT)
    assert not is_up_to_date(cluster.resource)
    cluster.settle()
    assert is_up_to_date(cluster.resource)
    assert finalizers(cluster) == []
    cluster.set_spec(output=DELETE)
    assert not is_up_to_date(cluster.resource)
    cluster.settle()
    assert finalizers(cluster) == [FINALIZER]
    assert cluster.condition("Ready") == ("True", "AdapterVerified")
    cluster.delete()
    assert not is_up_to_date(cluster.resource)


def test_a_deletion_that_is_edited_to_retain_needs_no_clean_up() -> None:
    cluster = deleted()
    cluster.set_spec(output=OUTPUT)
    cluster.settle()
    assert cluster.is_gone
    assert not {"OutputDeleted", "OutputLeft"} & set(cluster.events)


@pytest.mark.parametrize("finalizer", ["foregroundDeletion", "orphan"])
def test_a_clean_up_begins_when_the_garbage_collector_is_done(finalizer: str) -> None:
    cluster = succeeded()
    cluster.delete(finalizer)
    cluster.settle()
    assert "a-clean-up" not in cluster.created
    assert "the garbage collector" in cluster.message("Ready")
    cluster.collect_garbage()
    cluster.settle()
    assert "a-clean-up" in cluster.created


@pytest.mark.parametrize("reason", ["OutputAccessDenied", "BucketNotFound"])
def test_a_clean_up_that_cannot_succeed_is_not_repeated(reason: str) -> None:
    cluster = deleted()
    cluster.set_pod(terminated(18, result(reason)))
    cluster.settle()
    assert cluster.is_gone
    text = f"its objects in {LOCATION} are left: {reason}: why. Delete them by hand."
    assert text in cluster.told["OutputLeft", ""]


def test_a_clean_up_that_fails_is_repeated_a_few_times() -> None:
    cluster = deleted()
    for number in range(1, 6):
        assert not cluster.is_gone
        name = "a-clean-up" if number == 1 else f"a-clean-up-{number}"
        assert cluster.created[-1] == name
        cluster.set_pod(terminated(1, result("CleanUpFailed")), name)
        cluster.settle()
        if number < 5:
            assert "is repeated: CleanUpFailed: why" in cluster.message("Ready")
            cluster.wait(cluster.requeue_after or 0)
            cluster.settle()
    assert cluster.is_gone
    assert "OutputLeft" in cluster.events


def test_a_clean_up_whose_pod_was_taken_away_is_repeated_at_once() -> None:
    cluster = deleted()
    cluster.set_pod(running())
    cluster.settle()
    cluster.lose_pod("a-clean-up")
    cluster.settle()
    assert cluster.created[-1] == "a-clean-up-2"


@pytest.mark.parametrize("state", [None, pod(), pod({"waiting": {"reason": "ImagePullBackOff"}})])
def test_a_clean_up_that_does_not_start_keeps_the_object_for_a_while_only(state: dict[str, Any] | None) -> None:
    cluster = deleted()
    if state is not None:
        cluster.set_pod(state)
    cluster.settle()
    expected = "does not run: ImagePullFailed" if state and state["status"]["containerStatuses"] else "A clean-up pod"
    assert expected in cluster.message("Ready")
    for _ in range(100):
        if not cluster.is_gone:
            assert cluster.requeue_after
            cluster.wait(cluster.requeue_after)
            cluster.settle()
    assert cluster.is_gone
    assert (cluster.now - FakeCluster().now).total_seconds() == SETTINGS.clean_up_start_seconds
    assert "OutputLeft" in cluster.events


def test_a_clean_up_that_runs_may_take_its_time() -> None:
    cluster = deleted()
    cluster.set_pod(running())
    cluster.wait(10 * SETTINGS.clean_up_start_seconds)
    cluster.settle()
    assert not cluster.is_gone
    assert cluster.requeue_after is None


def test_the_pod_on_a_lost_node_keeps_nobody_waiting() -> None:
    cluster = in_training()
    lost = [{"type": "Ready", "status": "False"}, {"type": "ContainersReady", "status": "True"}]
    cluster.set_pod(pod({"running": {}}, phase="Running", conditions=lost))
    cluster.delete()
    cluster.settle()
    assert cluster.created[-1] == "a-clean-up"


def test_a_job_that_cannot_be_created_is_tried_a_few_times() -> None:
    cluster = succeeded()
    cluster.delete()
    for number in range(1, 6):
        decided = plan_blocked_clean_up(cluster.observed(), cluster.now, SETTINGS, "a quota", is_final=False)
        assert (decided.finalizers is None) is (number < 5)
        cluster.apply(decided)
        cluster.wait(600)
    assert cluster.is_gone
    assert "a quota" in cluster.told["OutputLeft", ""]


def test_in_a_namespace_that_is_deleted_the_object_goes_at_once() -> None:
    cluster = succeeded()
    cluster.delete()
    cluster.apply(plan_blocked_clean_up(cluster.observed(), cluster.now, SETTINGS, "terminating", is_final=True))
    assert cluster.is_gone
    assert LOCATION in cluster.told["OutputLeft", ""]


def test_a_job_that_expires_is_cleaned_up_and_its_event_does_not_promise_the_adapter() -> None:
    cluster = succeeded()
    cluster.set_spec(ttlSecondsAfterFinished=60)
    cluster.wait(60)
    cluster.settle()
    assert cluster.is_deleted
    note = cluster.told["Expired", ""]
    assert "is deleted too (spec.output.deletionPolicy)" in note
    assert "stays" not in note


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.sampled_from(PHASES), st.lists(st.sampled_from(["dies", "loses", "fails", "runs", "waits"]), max_size=8))
def test_whatever_happens_it_ends_and_a_second_pass_changes_nothing(make: Any, events: list[str]) -> None:
    cluster: FakeCluster = make()
    cluster.settings = replace(SETTINGS, retry_backoff_seconds=1)
    cluster.delete()
    for event in [*events, *["ends"] * 8]:
        name = cluster.job_of("clean-up")
        if cluster.is_gone:
            break
        if event == "loses" and name:
            cluster.lose_pod(name)
        elif event == "fails" and name and cluster.may_have_pod(name):
            cluster.set_pod(terminated(1, result("CleanUpFailed")), name)
        elif event == "runs" and name and cluster.may_have_pod(name):
            cluster.set_pod(running(), name)
        elif event == "ends" and name and cluster.may_have_pod(name):
            cluster.set_pod(terminated(0, DELETED), name)
        cluster.stop_pods(ASKED_TO_STOP)
        cluster.wait(30)
        cluster.settle(dies=event == "dies")
    assert cluster.is_gone
    assert len({"OutputDeleted", "OutputLeft"} & set(cluster.events)) == 1
