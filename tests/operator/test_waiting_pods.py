"""Pods that do not start: what the status says about them, how long they may take, and how their job ends then."""

import copy
from datetime import timedelta
from typing import Any

import pytest

from finetune_operator.policies.finished import is_finished
from tests.operator.fake_cluster import NOW, SETTINGS, FakeCluster, pod, running
from tests.operator.lives import BACKOFF, after_preflight, reasons
from tools.testing.operator_messages import SPEC


@pytest.mark.parametrize("kind", ["PreflightPassed", "Running"])
def test_a_pod_that_no_node_fits_waits_and_says_so(kind: str) -> None:
    cluster = FakeCluster() if kind == "PreflightPassed" else after_preflight()
    cluster.settle()
    unschedulable = {"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": "0/3 nodes"}
    cluster.play(pod(conditions=[unschedulable]))
    condition = cluster.condition(kind)
    assert condition is not None
    assert condition[1] == "Unschedulable"
    assert cluster.condition("Ready") == ("Unknown", "Unschedulable")
    assert cluster.condition("Stalled") is None


def test_an_image_that_cannot_be_pulled_is_waited_for_then_given_up() -> None:
    cluster = after_preflight(failurePolicy={"retries": {"onError": 0}})
    cluster.play(pod(BACKOFF))
    assert cluster.condition("Running") == ("False", "ImagePullFailed")
    assert cluster.requeue_after is not None
    cluster.wait(SETTINGS.image_pull_grace_seconds)
    cluster.settle()
    assert reasons(cluster) == ["ImagePullFailed"]
    assert cluster.condition("Succeeded") == ("False", "ImagePullFailed")
    assert "a-train-1" not in cluster.jobs, "its pod must not start later"


QUOTA = 'Error creating: pods "a" is forbidden: exceeded quota: gpus, used: pods=1, limited: pods=1'


@pytest.mark.parametrize("kind", ["PreflightPassed", "Running"])
def test_a_pod_that_the_cluster_refuses_waits_and_says_so(kind: str) -> None:
    cluster = FakeCluster() if kind == "PreflightPassed" else after_preflight()
    cluster.settle()
    assert cluster.requeue_after == 3, "within seconds somebody looks why there is no pod"
    cluster.wait(3)
    cluster.warnings = {cluster.created[-1]: QUOTA}
    cluster.settle()
    assert (cluster.condition(kind) or ("", ""))[1] == "PodRefused"
    assert cluster.condition("Ready") == ("Unknown", "PodRefused")
    assert "exceeded quota: gpus, used: pods=1, limited: pods=1. The pod starts when" in cluster.message("Ready")
    cluster.wait(100_000)
    cluster.settle()
    assert cluster.requeue_after == 60, "it is looked at less often later"
    assert len(cluster.created) == (1 if kind == "PreflightPassed" else 2)
    cluster.play(running())
    assert cluster.condition("Ready") in (("Unknown", "PreflightRunning"), ("Unknown", "Training"))


@pytest.mark.parametrize("kind", ["PreflightPassed", "Running"])
@pytest.mark.parametrize(
    ("waiting", "reason"),
    [
        (None, "PodRefused"),
        (pod(conditions=[{"type": "PodScheduled", "status": "False", "message": "0/3 nodes"}]), "Unschedulable"),
        (pod(BACKOFF), "ImagePullFailed"),
        (pod({"waiting": {"reason": "ContainerCreating"}}), "ContainerNotStarted"),
    ],
)
def test_a_pod_that_is_awaited_too_long_ends_the_job_with_the_reason_for_which_it_waits(
    kind: str, waiting: dict[str, Any] | None, reason: str
) -> None:
    spec = {**SPEC, "pendingDeadlineSeconds": 60}
    cluster = FakeCluster(spec) if kind == "PreflightPassed" else after_preflight(pendingDeadlineSeconds=60)
    cluster.settle()
    newest = cluster.created[-1]
    if waiting is None:
        cluster.warnings = {newest: QUOTA}
    else:
        cluster.set_pod(copy.deepcopy(waiting))
    cluster.settle()
    assert not is_finished(cluster.resource)
    while cluster.requeue_after is not None:
        cluster.wait(cluster.requeue_after)
        cluster.settle()
    assert cluster.now - NOW == timedelta(seconds=60)
    assert cluster.condition("Stalled") == ("True", reason)
    assert "did not start within 60 s (spec.pendingDeadlineSeconds)" in cluster.message("Stalled")
    assert newest not in cluster.jobs, "its pod must not start later"
    assert cluster.created[-1] == newest


def test_time_in_which_the_trainer_ran_is_not_time_in_which_its_pod_was_awaited() -> None:
    cluster = after_preflight(pendingDeadlineSeconds=60)
    cluster.wait(50)
    cluster.play(running())
    cluster.wait(1000)
    cluster.suspend("a-train-1", "kueue")
    cluster.settle()
    assert not is_finished(cluster.resource)
    cluster.wait(60)
    cluster.settle()
    assert cluster.condition("Succeeded") == ("False", "Suspended")


def test_a_pod_that_starts_for_long_without_a_word_gets_one() -> None:
    cluster = after_preflight()
    cluster.set_pod(pod({"waiting": {"reason": "ContainerCreating"}}))
    cluster.wait(119)
    cluster.settle()
    assert cluster.condition("Ready") == ("Unknown", "Training")
    cluster.wait(1)
    cluster.settle()
    assert cluster.condition("Running") == ("False", "ContainerNotStarted")
    assert "kubectl describe pods" in cluster.message("Ready")


def test_a_container_that_cannot_start_does_not_hold_its_gpu_for_long() -> None:
    cluster = after_preflight(failurePolicy={"retries": {"onError": 0}})
    cluster.wait(5000)
    cluster.play(pod({"waiting": {"reason": "CreateContainerConfigError", "message": 'secret "x" not found'}}))
    cluster.wait(119)
    cluster.settle()
    assert cluster.requeue_after == 1, "counted since it fails, not since it waits"
    cluster.wait(1)
    cluster.settle()
    assert cluster.condition("Succeeded") == ("False", "ContainerNotStarted")
    assert "a-train-1" not in cluster.jobs


def test_a_pod_on_a_lost_node_is_not_replaced_and_the_way_out_is_named() -> None:
    cluster = after_preflight()
    lost = running()
    lost["status"]["conditions"] = [
        {"type": "Ready", "status": "False"},
        {"type": "ContainersReady", "status": "True"},
    ]
    cluster.play(lost)
    assert cluster.condition("Running") == cluster.condition("Ready") == ("Unknown", "NodeLost")
    assert "kubectl delete node node-1" in cluster.message("Running")
    cluster.wait(3 * 86400)
    lost["metadata"]["deletionTimestamp"] = "2026-01-01T12:05:00Z"
    cluster.end_job("a-train-1", "Failed")
    cluster.settle()
    assert cluster.created == ["a-preflight", "a-train-1"], "the node may come back"
    cluster.pods.clear()
    cluster.settle()
    assert reasons(cluster) == ["Preempted", None]
