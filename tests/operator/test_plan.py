"""The life of a FineTuneJob: plans that take effect in a fake cluster, and the status after each."""

import copy
import json
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from finetune_api.timestamps import format_timestamp
from finetune_operator.kube.kinds import ROLE_LABEL
from finetune_operator.policies.finished import is_finished, is_up_to_date
from finetune_operator.policies.pod_state import has_ended
from finetune_operator.reconcile.finetunejob.apply import is_urgent
from finetune_operator.reconcile.finetunejob.plan import make_plan, plan_blocked, plan_refused
from tests.operator.fake_cluster import NOW, SETTINGS, FakeCluster, pod, running, terminated
from tools.testing.operator_messages import PREFLIGHT_PASSED, PROGRESS, SPEC, SUCCEEDED

ENDED_SIDECAR = {"terminated": {"exitCode": 0}}
CHECKPOINT = {"uri": "s3://adapters/checkpoints/step-7", "step": 7, "savedAt": "2026-01-01T12:00:00Z"}
BACKOFF = {"waiting": {"reason": "ImagePullBackOff", "message": "manifest unknown"}}


def trainer(reason: str, **more: Any) -> dict[str, Any]:
    return {"kind": "TrainerResult", "reason": reason, "message": "why", **more}


def after_preflight(**spec: Any) -> FakeCluster:
    cluster = FakeCluster({**SPEC, **spec})
    cluster.settle()
    cluster.play(terminated(0, PREFLIGHT_PASSED))
    return cluster


def in_training(**spec: Any) -> FakeCluster:
    cluster = after_preflight(**spec)
    cluster.play(running())
    return cluster


def reasons(cluster: FakeCluster) -> list[str | None]:
    return [attempt.get("reason") for attempt in cluster.resource["status"].get("attempts", [])]


def test_a_good_run() -> None:
    cluster = FakeCluster()
    cluster.settle()
    assert cluster.created == ["a-preflight"]
    assert cluster.condition("Ready") == ("Unknown", "PreflightRunning")
    assert cluster.condition("Reconciling") == ("True", "PreflightRunning")
    cluster.play(running())
    cluster.play(terminated(0, PREFLIGHT_PASSED))
    assert cluster.created == ["a-preflight", "a-train-1"]
    assert cluster.condition("Running") == ("False", "Pending")
    cluster.play(running())
    assert cluster.condition("Running") == ("True", "Training")
    cluster.play(terminated(0, SUCCEEDED))
    assert cluster.condition("Ready") == cluster.condition("Succeeded") == ("True", "AdapterVerified")
    assert cluster.condition("Evaluated") == ("True", "Evaluated")
    assert cluster.condition("Reconciling") is None
    assert cluster.resource["status"]["adapter"]["digest"] == SUCCEEDED["adapter"]["digest"]
    assert cluster.events == ["Accepted", "PreflightPassed", "AttemptStarted", "Succeeded"]
    assert is_up_to_date(cluster.resource)


def test_code_that_a_model_brings_runs_only_where_the_administrator_allows_it() -> None:
    trusting = {**SPEC, "model": {**SPEC["model"], "trustRemoteCode": True}}
    cluster = FakeCluster(trusting)
    cluster.settle()
    assert cluster.created == []
    assert cluster.condition("Accepted") == ("False", "SpecInvalid")
    accepted = cluster.message("Accepted")
    assert "spec.model.trustRemoteCode" in accepted
    assert "ask the administrator to set the chart value trainer.allowRemoteCode" in accepted
    cluster.settings = replace(SETTINGS, allow_remote_code=True)
    cluster.settle()
    assert cluster.condition("Accepted") == ("True", "Accepted")
    assert cluster.created == ["a-preflight"]


def test_what_is_wrong_never_reaches_a_gpu() -> None:
    cluster = FakeCluster()
    cluster.settle()
    problem = {
        "reason": "TargetModulesNotFound",
        "field": "spec.method.lora.targetModules",
        "message": "there are q_proj, v_proj",
    }
    cluster.play(terminated(16, {"kind": "PreflightResult", "problems": [problem]}))
    cluster.wait(3600)
    cluster.settle()
    assert cluster.created == ["a-preflight"]
    assert cluster.condition("PreflightPassed") == ("False", "TargetModulesNotFound")
    assert cluster.condition("Stalled") == ("True", "TargetModulesNotFound")
    assert cluster.condition("Ready") == ("False", "TargetModulesNotFound")
    assert cluster.message("PreflightPassed") == "spec.method.lora.targetModules: there are q_proj, v_proj"


def test_a_preflight_that_died_is_repeated_within_the_budget() -> None:
    cluster = FakeCluster()
    cluster.settle()
    for expected in ("a-preflight-2", "a-preflight-3"):
        cluster.play(terminated(1, "Traceback", at=cluster.now))
        assert cluster.job_of("preflight") != expected, "it waits for the backoff"
        assert cluster.requeue_after is not None
        cluster.wait(cluster.requeue_after)
        cluster.settle()
        assert cluster.job_of("preflight") == expected
    cluster.play(terminated(1, "Traceback", at=cluster.now))
    assert cluster.condition("PreflightPassed") == ("False", "PreflightError")
    assert cluster.condition("Stalled") == ("True", "PreflightError")


def test_a_preflight_that_the_cluster_took_away_is_repeated_at_once() -> None:
    cluster = FakeCluster()
    cluster.settle()
    cluster.play(terminated(137, deleted=True))
    assert cluster.job_of("preflight") == "a-preflight-2"


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


def test_errors_are_repeated_with_backoff_until_the_budget_is_used_up() -> None:
    cluster = after_preflight()
    for seconds in (10, 20):
        cluster.play(terminated(1, trainer("TrainerError"), at=cluster.now))
        assert cluster.resource["status"]["phase"] == "Retrying"
        assert cluster.requeue_after == seconds
        cluster.wait(seconds)
        cluster.settle()
    assert cluster.created[1:] == ["a-train-1", "a-train-2", "a-train-3"]
    cluster.play(terminated(1, trainer("TrainerError"), at=cluster.now))
    assert reasons(cluster) == ["TrainerError"] * 3
    assert cluster.condition("Succeeded") == ("False", "TrainerError")
    assert cluster.condition("Stalled") == ("True", "TrainerError")
    assert cluster.events == ["Accepted", "PreflightPassed", "AttemptFailed", "AttemptFailed", "Failed"]
    cluster.wait(3600)
    cluster.settle()
    assert cluster.created[-1] == "a-train-3"


def test_a_job_that_does_not_fit_is_made_smaller_attempt_by_attempt_and_then_given_up() -> None:
    cluster = after_preflight(training={"maxSteps": 10, "perDeviceBatchSize": 2})
    for ending in (
        terminated(31, trainer("OutOfMemory")),
        terminated(40, trainer("Preempted"), deleted=True),
        terminated(31, trainer("OutOfMemory")),
        terminated(31, trainer("OutOfMemory")),
    ):
        cluster.play(ending)
    assert cluster.created[1:] == ["a-train-1", "a-train-2", "a-train-3", "a-train-4"]
    changes = [attempt.get("adjustments", []) for attempt in cluster.resource["status"]["attempts"]]
    batch = [
        {"field": "training.perDeviceBatchSize", "before": "2", "after": "1"},
        {"field": "training.gradientAccumulationSteps", "before": "1", "after": "2"},
    ]
    checkpointing = {"field": "training.gradientCheckpointing", "before": "auto", "after": "always"}
    assert changes == [[], batch, batch, [*batch, checkpointing]]
    assert cluster.condition("Stalled") == ("True", "OutOfMemory")


def test_the_trainer_is_told_the_job_that_fits_and_what_was_changed() -> None:
    cluster = after_preflight(training={"maxSteps": 10, "perDeviceBatchSize": 2})
    cluster.set_pod(terminated(31, trainer("OutOfMemory")))
    decided = make_plan(cluster.observed(), cluster.now, SETTINGS)
    assert decided.create is not None
    (container,) = decided.create["spec"]["template"]["spec"]["containers"]
    environment = {
        variable["name"]: json.loads(variable["value"]) for variable in container["env"] if variable["value"][0] in "[{"
    }
    assert environment["FINETUNE_JOB"]["spec"]["training"]["perDeviceBatchSize"] == 1
    assert [change["after"] for change in environment["FINETUNE_ADJUSTMENTS"]] == ["1", "2"]
    (running_condition,) = [c for c in decided.status["conditions"] if c["type"] == "Reconciling"]
    assert decided.status["attempts"][0]["reason"] == "OutOfMemory"
    assert running_condition["status"] == "True"


def test_a_preempted_attempt_is_followed_at_once_and_costs_no_error_budget() -> None:
    cluster = after_preflight(failurePolicy={"retries": {"onError": 0}})
    for number in (2, 3, 4):
        cluster.play(terminated(40, trainer("Preempted", resumedFromStep=5), deleted=True))
        assert cluster.job_of("trainer") == f"a-train-{number}"
    assert cluster.resource["status"]["attempts"][0]["resumedFromStep"] == 5
    cluster.play(terminated(0, SUCCEEDED))
    assert reasons(cluster) == ["Preempted", "Preempted", "Preempted", "Succeeded"]


def avoided_nodes(cluster: FakeCluster) -> list[str]:
    """Return the nodes that the pod avoids which is created next."""
    decided = make_plan(cluster.observed(), cluster.now, SETTINGS)
    assert decided.create is not None
    preferences = decided.create["spec"]["template"]["spec"]["affinity"]["nodeAffinity"][
        "preferredDuringSchedulingIgnoredDuringExecution"
    ]
    return [field["values"][0] for field in preferences[0]["preference"]["matchFields"]]


def test_a_node_that_refuses_the_pod_is_avoided_and_the_next_attempt_waits() -> None:
    cluster = after_preflight()
    for number in range(1, 8):
        refused = pod(phase="Failed", status={"reason": "UnexpectedAdmissionError"})
        cluster.play({**refused, "spec": {"nodeName": f"node-{number}"}})
        assert cluster.created[-1] == f"a-train-{number}", "it waits"
        cluster.wait(1000)
        avoided = avoided_nodes(cluster)
        cluster.settle()
        assert cluster.created[-1] == f"a-train-{number + 1}"
    assert reasons(cluster) == [*["NodeError"] * 7, None]
    assert cluster.resource["status"]["attempts"][6]["nodeName"] == "node-7"
    assert avoided == ["node-7", "node-6", "node-5", "node-4", "node-3"]


@pytest.mark.parametrize(("code", "reason"), [(36, "GpuNotVisible"), (38, "GpuError")])
def test_a_node_whose_gpu_is_not_visible_or_fails_is_avoided(code: int, reason: str) -> None:
    cluster = after_preflight()
    cluster.play(terminated(code, trainer(reason)))
    cluster.wait(1000)
    assert avoided_nodes(cluster) == ["node-1"]
    cluster.settle()
    assert reasons(cluster) == [reason, None]


def test_the_warnings_of_many_attempts_are_bounded() -> None:
    cluster = FakeCluster({**SPEC, "failurePolicy": {"retries": {"onPreemption": 1000}}})
    cluster.settle()
    cluster.play(terminated(0, {**PREFLIGHT_PASSED, "warnings": ["of the preflight"]}))
    for number in range(40):
        warnings = [f"attempt {number}: {'x' * 2000}", "the same"]
        cluster.play(terminated(40, trainer("Preempted", warnings=warnings), deleted=True))
    shown = cluster.resource["status"]["warnings"]
    assert len(shown) == 20
    assert shown[0] == "of the preflight"
    assert shown[-1].startswith("attempt 39: ")
    assert max(map(len, shown)) == 1024


def test_the_gpu_time_of_all_attempts_adds_up() -> None:
    cluster = after_preflight()
    cluster.play(terminated(40, trainer("Preempted", usage={"gpuSeconds": 30.5, "phases": {"train": 30.5}})))
    cluster.play(terminated(40, "its message is lost"))
    assert cluster.resource["status"]["usage"] == {"gpuSeconds": 30.5, "phases": {"train": 30.5}}
    usage = {"gpuSeconds": 12.0, "phases": {"train": 10.0, "publish": 2.0, "of a newer trainer": 1.0, "bad": "x"}}
    cluster.play(terminated(40, trainer("Preempted", usage=usage)))
    assert cluster.resource["status"]["usage"] == {
        "gpuSeconds": 42.5,
        "phases": {"train": 40.5, "publish": 2.0, "of a newer trainer": 1.0},
    }


def test_a_job_that_somebody_deleted_is_a_preemption() -> None:
    cluster = after_preflight()
    cluster.jobs.pop("a-train-1")
    cluster.settle()
    assert reasons(cluster) == ["Preempted", None]
    assert cluster.job_of("trainer") == "a-train-2"


def test_the_pod_of_a_deleted_job_must_have_stopped_before_the_next_attempt() -> None:
    cluster = after_preflight()
    cluster.set_pod(pod({"running": {}}, phase="Running", deleted=True))
    cluster.jobs.pop("a-train-1")
    cluster.settle()
    assert cluster.created[-1] == "a-train-1"
    cluster.pods["a-train-1"] = terminated(40, trainer("Preempted"), deleted=True)
    cluster.settle()
    assert reasons(cluster) == ["Preempted", None]
    assert cluster.created[-1] == "a-train-2"


def test_a_sidecar_that_ends_first_does_not_end_the_attempt() -> None:
    cluster = after_preflight()
    cluster.play(running(sidecar=ENDED_SIDECAR))
    assert cluster.condition("Running") == ("True", "Training")
    assert cluster.created == ["a-preflight", "a-train-1"]


def test_a_pod_that_only_a_sidecar_keeps_is_ended_and_its_result_counts() -> None:
    cluster = FakeCluster()
    cluster.settle()
    cluster.play(terminated(0, PREFLIGHT_PASSED, sidecar={"running": {}}))
    assert cluster.pods["a-preflight"]["status"]["phase"] == "Failed"
    assert cluster.created == ["a-preflight", "a-train-1"]
    cluster.set_pod(terminated(0, SUCCEEDED, sidecar={"running": {}}))
    decided = make_plan(cluster.observed(), cluster.now, SETTINGS)
    assert [item["metadata"]["name"] for item in decided.end_pods] == ["a-pod"], "ended before the job has finished"
    cluster.settle()
    assert cluster.condition("Succeeded") == ("True", "AdapterVerified")
    assert cluster.pods["a-train-1"]["status"]["phase"] == "Failed", "it holds no GPU"


def test_a_failed_trainer_beside_a_sidecar_is_followed_by_one_attempt() -> None:
    cluster = after_preflight()
    cluster.play(terminated(31, trainer("OutOfMemory"), sidecar={"running": {}}))
    assert reasons(cluster) == ["OutOfMemory", None]
    assert cluster.pods["a-train-1"]["status"]["phase"] == "Failed"
    assert cluster.created == ["a-preflight", "a-train-1", "a-train-2"]


def test_a_pod_whose_sidecars_have_ended_ends_by_itself() -> None:
    cluster = after_preflight()
    cluster.set_pod(terminated(0, SUCCEEDED, sidecar=ENDED_SIDECAR))
    assert make_plan(cluster.observed(), cluster.now, SETTINGS).end_pods == ()


def test_an_edit_of_the_ladder_does_not_undo_what_was_reduced() -> None:
    training = {"perDeviceBatchSize": 8}
    cluster = after_preflight(training=training)
    cluster.play(terminated(31, trainer("OutOfMemory")))
    policy = {"outOfMemory": {"reduceBatchSize": False, "quantize": True}}
    cluster.resource["spec"] = {**SPEC, "training": training, "failurePolicy": policy}
    cluster.settle()
    cluster.play(terminated(40, trainer("Preempted"), deleted=True))
    cluster.play(terminated(31, trainer("OutOfMemory")))
    made = [
        {change["field"]: change["after"] for change in attempt.get("adjustments", [])}
        for attempt in cluster.resource["status"]["attempts"]
    ]
    batch = {"training.perDeviceBatchSize": "4", "training.gradientAccumulationSteps": "2"}
    assert made[:3] == [{}, batch, batch]
    assert made[3] == {**batch, "training.gradientCheckpointing": "always"}, "the edit holds for the next step"


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


def test_a_suspended_job_gives_no_second_run() -> None:
    cluster = in_training()
    cluster.suspend("a-train-1", "kueue")
    cluster.settle()
    assert cluster.condition("Running") == ("False", "Suspended")
    assert cluster.condition("Ready") == ("Unknown", "Suspended")
    assert "a-train-1 is suspended by kueue" in cluster.message("Ready")
    cluster.play(terminated(40, trainer("Preempted"), deleted=True))
    cluster.pods.clear()
    cluster.wait(86400)
    cluster.settle()
    assert cluster.created == ["a-preflight", "a-train-1"]
    assert reasons(cluster) == [None]
    cluster.resume("a-train-1")
    cluster.play(running())
    assert cluster.condition("Running") == ("True", "Training")
    assert cluster.created == ["a-preflight", "a-train-1"]


def test_a_job_that_is_suspended_after_its_attempt_has_ended_goes_before_the_next_one_comes() -> None:
    cluster = after_preflight()
    failed = terminated(1, trainer("TrainerError"))
    failed["status"]["phase"] = "Running"  # the Job controller does not know yet
    cluster.play(failed)
    assert reasons(cluster) == ["TrainerError"]
    cluster.wait(3600)
    cluster.settle()
    assert cluster.created == ["a-preflight", "a-train-1"], "its Job may make another pod"
    assert "Attempt 2 begins when these have ended: Job a-train-1." in cluster.message("Ready")
    cluster.suspend("a-train-1", "kubectl")
    cluster.settle()
    assert "a-train-1" not in cluster.jobs
    assert cluster.created == ["a-preflight", "a-train-1", "a-train-2"]


def test_a_preflight_that_somebody_suspends_says_so() -> None:
    cluster = FakeCluster()
    cluster.settle()
    cluster.suspend("a-preflight", "kueue")
    cluster.settle()
    assert cluster.condition("PreflightPassed") == ("Unknown", "Suspended")
    assert cluster.condition("Ready") == ("Unknown", "Suspended")


def test_no_attempt_begins_beside_the_pod_of_another_whoever_deleted_its_job() -> None:
    cluster = after_preflight()
    cluster.play(terminated(1, trainer("TrainerError")))
    cluster.pods["a-train-0"] = running()
    cluster.pods["a-train-0"]["metadata"]["labels"] = {ROLE_LABEL: "trainer"}
    cluster.wait(3600)
    cluster.settle()
    assert cluster.created == ["a-preflight", "a-train-1"]
    assert "pod a-pod" in cluster.message("Ready")
    cluster.pods.pop("a-train-0")
    cluster.settle()
    assert cluster.created[-1] == "a-train-2"


def test_jobs_of_ended_runs_are_deleted_but_the_last_one() -> None:
    cluster = FakeCluster({**SPEC, "failurePolicy": {"retries": {"onPreemption": 100}}})
    cluster.settle()
    for _ in range(5):
        cluster.play(terminated(137, deleted=True))
    assert sorted(cluster.jobs) == ["a-preflight-5", "a-preflight-6"]
    cluster.play(terminated(0, PREFLIGHT_PASSED))
    for _ in range(5):
        cluster.play(terminated(40, trainer("Preempted"), deleted=True))
    assert sorted(cluster.jobs) == ["a-preflight-5", "a-preflight-6", "a-train-5", "a-train-6"]
    assert len(reasons(cluster)) == 6


def test_a_node_whose_clock_is_wrong_delays_nothing() -> None:
    for hours in (-1, 1):
        cluster = after_preflight()
        cluster.play(terminated(1, trainer("TrainerError"), at=cluster.now + timedelta(hours=hours)))
        assert cluster.requeue_after == 10
        cluster = FakeCluster()
        cluster.settle()
        cluster.play(terminated(1, "Traceback", at=cluster.now + timedelta(hours=hours)))
        assert cluster.requeue_after == 10


SAVED = terminated(40, trainer("Preempted", checkpoint=CHECKPOINT), deleted=True)


def test_suspending_saves_a_checkpoint_and_frees_the_gpu_and_resuming_continues() -> None:
    cluster = after_preflight(failurePolicy={"retries": {"onPreemption": 0, "onError": 0}})
    for number in (1, 2, 3):
        cluster.play(running())
        cluster.set_spec(suspend=True)
        cluster.settle()
        assert f"a-train-{number}" not in cluster.jobs, "deleted, so that nobody resumes it"
        assert cluster.condition("Suspended") == ("False", "Suspending")
        assert cluster.condition("Running") == ("True", "Training")
        cluster.wait(30)
        cluster.settle()
        cluster.stop_pods(SAVED)
        cluster.settle()
        assert cluster.condition("Suspended") == ("True", "Suspended")
        assert cluster.condition("Running") == ("False", "Suspended")
        assert cluster.condition("Ready") == ("False", "Suspended")
        assert cluster.condition("Reconciling") is None
        assert cluster.resource["status"]["phase"] == "Suspended"
        assert "from the checkpoint of step 7" in cluster.message("Suspended")
        cluster.wait(86400)
        cluster.settle()
        assert cluster.job_of("trainer") is None
        cluster.set_spec(suspend=False)
        cluster.settle()
        assert cluster.condition("Suspended") == ("False", "Resumed")
        assert cluster.created[-1] == f"a-train-{number + 1}"
    cluster.play(terminated(0, SUCCEEDED))
    assert reasons(cluster) == ["Suspended", "Suspended", "Suspended", "Succeeded"]
    assert cluster.resource["status"]["suspensions"] == 3


def test_suspensions_cost_no_retries_however_many_there_were() -> None:
    cluster = after_preflight(failurePolicy={"retries": {"onPreemption": 1}})
    for _ in range(30):
        for suspend in (True, False):
            cluster.set_spec(suspend=suspend)
            cluster.settle()
    cluster.play(terminated(40, trainer("Preempted"), deleted=True))
    assert cluster.created[-1] == "a-train-32"
    assert len(reasons(cluster)) == 20
    cluster.play(terminated(40, trainer("Preempted"), deleted=True))
    assert cluster.condition("Succeeded") == ("False", "Preempted")


def test_a_job_may_be_created_suspended() -> None:
    cluster = FakeCluster({**SPEC, "suspend": True})
    cluster.settle()
    assert cluster.created == []
    assert cluster.condition("Accepted") == ("True", "Accepted")
    assert cluster.condition("Suspended") == ("True", "Suspended")
    cluster.set_spec(suspend=False)
    cluster.settle()
    assert cluster.created == ["a-preflight"]
    assert cluster.condition("Suspended") == ("False", "Resumed")


def test_a_preflight_is_suspended_too() -> None:
    cluster = FakeCluster({**SPEC, "failurePolicy": {"retries": {"onPreemption": 0}}})
    cluster.settle()
    cluster.play(running())
    cluster.set_spec(suspend=True)
    cluster.settle()
    assert cluster.jobs == {}
    assert cluster.condition("Suspended") == ("False", "Suspending")
    cluster.stop_pods(terminated(143, deleted=True))
    cluster.settle()
    assert cluster.condition("Suspended") == ("True", "Suspended")
    cluster.set_spec(suspend=False)
    cluster.settle()
    assert cluster.created == ["a-preflight", "a-preflight-2"]


def test_a_preflight_that_passes_while_it_is_suspended_has_passed() -> None:
    cluster = FakeCluster()
    cluster.settle()
    cluster.set_pod(terminated(0, PREFLIGHT_PASSED))
    cluster.set_spec(suspend=True)
    cluster.settle()
    assert cluster.condition("PreflightPassed") == ("True", "PreflightPassed")
    assert cluster.condition("Suspended") == ("True", "Suspended")
    assert cluster.created == ["a-preflight"]


def test_a_suspension_that_is_taken_back_waits_for_the_pod_that_still_stops() -> None:
    cluster = in_training()
    for suspend in (True, False):
        cluster.set_spec(suspend=suspend)
        cluster.settle()
    assert cluster.created == ["a-preflight", "a-train-1"]
    cluster.stop_pods(SAVED)
    cluster.settle()
    assert reasons(cluster) == ["Suspended", None]
    assert cluster.condition("Suspended") == ("False", "Resumed")


def test_a_trainer_that_ends_for_its_own_reason_while_it_is_suspended_keeps_it() -> None:
    for ending, condition in (
        (terminated(0, SUCCEEDED, deleted=True), ("True", "AdapterVerified")),
        (terminated(32, trainer("LossDiverged"), deleted=True), ("False", "LossDiverged")),
    ):
        cluster = in_training()
        cluster.set_spec(suspend=True)
        cluster.settle()
        cluster.stop_pods(ending)
        cluster.settle()
        assert cluster.condition("Succeeded") == condition


def test_the_time_of_all_attempts_counts_for_the_deadline_and_no_other_time() -> None:
    cluster = after_preflight(activeDeadlineSeconds=100)
    cluster.wait(1000)  # for a node
    cluster.play(running())
    assert cluster.requeue_after == 100
    cluster.wait(40)
    cluster.set_spec(suspend=True)
    cluster.settle()
    cluster.stop_pods(SAVED)
    cluster.settle()
    assert cluster.resource["status"]["activeSeconds"] == 40
    cluster.wait(5000)
    cluster.set_spec(suspend=False)
    cluster.settle()
    cluster.play(running())
    assert cluster.requeue_after == 60
    cluster.wait(30)
    cluster.suspend("a-train-2", "kueue")
    cluster.settle()
    cluster.wait(5000)
    cluster.settle()
    assert cluster.resource["status"]["activeSeconds"] == 70
    cluster.resume("a-train-2")
    cluster.play(running())
    assert cluster.requeue_after == 30
    cluster.wait(30)
    cluster.settle()
    assert "a-train-2" not in cluster.jobs
    assert not is_finished(cluster.resource), "it saves a checkpoint"
    assert cluster.condition("Ready") == ("Unknown", "DeadlineExceeded")
    cluster.stop_pods(SAVED)
    cluster.settle()
    assert reasons(cluster) == ["Suspended", "DeadlineExceeded"]
    assert cluster.condition("Succeeded") == cluster.condition("Ready") == ("False", "DeadlineExceeded")
    assert cluster.resource["status"]["checkpoint"]["step"] == 7


def test_how_long_a_trainer_ran_is_told_by_one_clock() -> None:
    cluster = after_preflight(activeDeadlineSeconds=100)
    begin = cluster.now + timedelta(hours=5)
    failed = terminated(1, trainer("TrainerError"), at=begin + timedelta(seconds=30))
    failed["status"]["containerStatuses"][0]["state"]["terminated"]["startedAt"] = format_timestamp(begin)
    cluster.play(failed)
    assert cluster.resource["status"]["activeSeconds"] == 30


def test_no_attempt_begins_after_the_deadline() -> None:
    cluster = in_training()
    cluster.wait(50)
    cluster.play(terminated(1, trainer("TrainerError")))
    cluster.set_spec(activeDeadlineSeconds=50)
    cluster.wait(1000)
    cluster.settle()
    assert cluster.created == ["a-preflight", "a-train-1"]
    assert cluster.condition("Succeeded") == ("False", "DeadlineExceeded")


def test_the_events_of_a_job_with_a_hard_life_read_like_a_story() -> None:
    cluster = after_preflight()
    cluster.play(pod(conditions=[{"type": "PodScheduled", "status": "False", "message": "0/3 nodes"}]))
    cluster.play(running())
    cluster.suspend("a-train-1", "kueue")
    cluster.settle()
    cluster.resume("a-train-1")
    cluster.play(running())
    cluster.set_spec(suspend=True)
    cluster.settle()
    cluster.stop_pods(SAVED)
    cluster.settle()
    cluster.set_spec(suspend=False)
    cluster.settle()
    cluster.play(running())
    cluster.play(terminated(0, SUCCEEDED))
    assert cluster.events == [
        "Accepted",
        "PreflightPassed",
        "Unschedulable",
        "AttemptStarted",
        "JobSuspended",
        "Suspended",
        "Resumed",
        "AttemptStarted",
        "Succeeded",
    ]


def test_a_finished_job_is_deleted_when_its_time_to_live_is_over_and_its_adapter_is_told() -> None:
    cluster = after_preflight(ttlSecondsAfterFinished=60)
    cluster.play(terminated(0, SUCCEEDED))
    assert cluster.requeue_after == 60
    assert not is_up_to_date(cluster.resource), "a restarted operator looks at it again"
    cluster.wait(59)
    cluster.settle()
    assert not cluster.is_deleted
    cluster.wait(1)
    cluster.settle()
    assert cluster.is_deleted
    told = cluster.told["Expired", ""]
    assert SUCCEEDED["adapter"]["uri"] in told
    assert SUCCEEDED["adapter"]["digest"] in told
    assert "LORA of rank 8 for smollm" in told
    assert len(told) < 1000


def test_a_failed_job_has_a_time_to_live_too_and_an_unfinished_one_has_none() -> None:
    cluster = after_preflight(ttlSecondsAfterFinished=0)
    cluster.wait(86400)
    cluster.settle()
    assert not cluster.is_deleted
    cluster.play(terminated(32, trainer("LossDiverged")))
    assert cluster.is_deleted
    assert "It ended as Failed and has no adapter" in cluster.told["Expired", ""]


def test_the_commit_that_the_preflight_found_is_kept_for_every_attempt() -> None:
    cluster = after_preflight()
    cluster.pods.clear()
    cluster.jobs.clear()
    decided = make_plan(cluster.observed(), cluster.now, SETTINGS)
    assert decided.create is not None
    variables = decided.create["spec"]["template"]["spec"]["containers"][0]["env"]
    assert {"name": "FINETUNE_MODEL_REVISION", "value": "abc123"} in variables


def test_a_finished_job_is_never_run_again() -> None:
    cluster = after_preflight()
    cluster.play(terminated(0, SUCCEEDED))
    status = cluster.resource["status"]
    cluster.jobs.clear()
    cluster.pods.clear()
    cluster.wait(100_000)
    cluster.settle()
    assert cluster.created == ["a-preflight", "a-train-1"]
    assert cluster.resource["status"] == status


def test_a_finished_job_still_follows_its_generation() -> None:
    cluster = after_preflight()
    cluster.play(terminated(0, SUCCEEDED))
    cluster.resource["metadata"]["generation"] = 7
    assert not is_up_to_date(cluster.resource)
    cluster.settle()
    assert cluster.resource["status"]["observedGeneration"] == 7
    assert is_up_to_date(cluster.resource)


def test_a_job_whose_status_write_was_lost_is_adopted() -> None:
    cluster = FakeCluster()
    cluster.settle()
    cluster.set_pod(terminated(0, PREFLIGHT_PASSED))
    cluster.settle(dies=True)
    assert cluster.created == ["a-preflight", "a-train-1"]
    assert [attempt["jobName"] for attempt in cluster.resource["status"]["attempts"]] == ["a-train-1"]


def test_a_job_in_whose_name_something_else_lives_says_so_and_goes_on_trying() -> None:
    cluster = FakeCluster()
    cluster.apply(plan_blocked(cluster.observed(), NOW, "a Job a-preflight exists"))
    assert cluster.condition("Ready") == ("Unknown", "Pending")
    assert not is_finished(cluster.resource)


def test_a_spec_that_the_api_server_makes_no_job_of_is_invalid_for_good() -> None:
    cluster = FakeCluster()
    cluster.apply(plan_refused(cluster.observed(), NOW, "quantities must match"))
    assert cluster.condition("Accepted") == ("False", "SpecInvalid")
    assert is_finished(cluster.resource)


def test_only_progress_waits_for_the_write_budget() -> None:
    cluster = after_preflight()
    before = cluster.resource["status"]
    assert not is_urgent(before, {**before, "progress": PROGRESS})
    wording = [{**item, "message": "0/4 nodes"} for item in before["conditions"]]
    assert not is_urgent(before, {**before, "conditions": wording})
    assert is_urgent(before, {**before, "phase": "Succeeded"})
    turned = [{**item, "status": "False"} for item in before["conditions"]]
    assert is_urgent(before, {**before, "conditions": turned})


PODS = [
    lambda now: pod(),
    lambda now: running(),
    lambda now: pod(BACKOFF),
    lambda now: pod({"running": {}}, phase="Running", deleted=True),
    lambda now: terminated(0, PREFLIGHT_PASSED, at=now),
    lambda now: terminated(0, SUCCEEDED, at=now),
    lambda now: terminated(1, trainer("TrainerError"), at=now),
    lambda now: terminated(40, trainer("Preempted"), deleted=True, at=now),
    lambda now: terminated(31, trainer("OutOfMemory"), at=now),
    lambda now: terminated(137, reason="OOMKilled", at=now),
    lambda now: terminated(0, "nonsense", at=now),
    lambda now: pod(phase="Failed", status={"reason": "Evicted"}),
    lambda now: running(sidecar=ENDED_SIDECAR),
    lambda now: terminated(1, trainer("TrainerError"), at=now, sidecar={"running": {}}),
    lambda now: terminated(0, SUCCEEDED, at=now, sidecar={"running": {}}),
]
EVENTS = st.one_of(
    st.tuples(st.just("pod"), st.integers(0, 2 * len(PODS) - 1)),
    st.tuples(st.just("suspend"), st.just(0)),
    st.tuples(st.just("resume"), st.just(0)),
    st.tuples(st.just("suspend the job"), st.just(0)),
    st.tuples(st.just("resume the job"), st.just(0)),
    st.tuples(st.just("pods stop"), st.just(0)),
    st.tuples(st.just("wait"), st.integers(1, 300)),
    st.tuples(st.just("pod gone"), st.just(0)),
    st.tuples(st.just("job gone"), st.just(0)),
    st.tuples(st.just("operator dies"), st.just(0)),
)


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(EVENTS, max_size=25))
@example([("pod", 4), ("pod", 11), ("pod", 1), ("job gone", 0), ("pod", 1)])
def test_whatever_happens_a_second_pass_changes_nothing_and_attempts_are_one_after_another(
    events: list[tuple[str, int]],
) -> None:
    cluster = FakeCluster({**SPEC, "activeDeadlineSeconds": 600, "pendingDeadlineSeconds": 900})
    cluster.settle()
    dies = False
    for event, number in events:
        newest = cluster.job_of("trainer") or cluster.job_of("preflight")
        if event == "pod":
            # any Job that has not ended may get a pod, and none in which a container has ended starts again
            able = [name for name in cluster.jobs if cluster.may_have_pod(name)]
            if able:
                cluster.set_pod(PODS[number % len(PODS)](cluster.now), able[-1 - number // len(PODS) % len(able)])
        elif event in ("suspend the job", "resume the job"):
            cluster.set_spec(suspend=event == "suspend the job")
        elif event == "pods stop":
            cluster.stop_pods(SAVED)
        elif event == "suspend" and newest is not None:
            cluster.suspend(newest, "kueue")
        elif event == "resume":
            for name in cluster.jobs:
                cluster.resume(name)
        elif event == "wait":
            cluster.now += timedelta(seconds=number)
        elif event == "pod gone" and newest is not None:
            cluster.lose_pod(newest)
        elif event == "job gone" and newest is not None:
            cluster.jobs.pop(newest)
        if event == "operator dies":
            dies = True  # in the next pass that does something
            continue
        finished_before = is_finished(cluster.resource)
        created_before = len(cluster.created)
        cluster.settle(dies=dies)
        dies = False
        again = make_plan(cluster.observed(), cluster.now, SETTINGS)
        assert again.create is None
        assert again.delete == ()
        assert again.status == cluster.resource["status"]
        check(cluster)
        if finished_before:
            assert len(cluster.created) == created_before, "a finished job is never run again"


def check(cluster: FakeCluster) -> None:
    """What must hold at any time."""
    status = cluster.resource["status"]
    attempts = status.get("attempts", [])
    numbers = [attempt["number"] for attempt in attempts]
    assert numbers == sorted(set(numbers))
    assert all("finishedAt" in attempt for attempt in attempts[:-1]), "one attempt at a time"
    trainers = [name for name in cluster.created if "-train-" in name]
    assert trainers == [f"a-train-{number}" for number in range(1, len(trainers) + 1)], "no number twice, none left out"
    if trainers:
        assert cluster.condition("PreflightPassed") == ("True", "PreflightPassed")
    alive = [name for name, item in cluster.pods.items() if "-train-" in name and not has_ended(item, "trainer")]
    assert len(alive) <= 1, "two trainers would write to the same place"
    shown = {item["type"]: item["status"] for item in status["conditions"]}
    idle = "Stalled" in shown or shown.get("Suspended") == "True"
    assert shown["Ready"] == ("True" if shown.get("Succeeded") == "True" else "False" if idle else "Unknown")
    assert shown.get("Suspended") != "True" or not alive
    assert ("Reconciling" in shown) != (shown["Ready"] in ("True", "False"))
    assert status["observedGeneration"] == 1
