"""The life of a FineTuneJob: plans that take effect in a fake cluster, and the status after each."""

import json
from dataclasses import replace
from datetime import timedelta

import pytest

from finetune_api.messages import ProgressReport
from finetune_operator.kube.kinds import ROLE_LABEL
from finetune_operator.policies.finished import is_finished, is_up_to_date
from finetune_operator.reconcile.finetunejob.apply import is_urgent
from finetune_operator.reconcile.finetunejob.plan import make_plan, plan_blocked, plan_refused
from tests.operator.fake_cluster import NOW, SETTINGS, FakeCluster, pod, running, terminated
from tests.operator.lives import ENDED_SIDECAR, after_preflight, reasons, trainer
from tools.testing.operator_messages import PREFLIGHT_PASSED, PROGRESS, SPEC, SUCCEEDED


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


def test_what_a_trainer_changed_by_itself_is_shown_and_the_next_attempt_begins_there() -> None:
    batch = [
        {"field": "training.perDeviceBatchSize", "before": "4", "after": "2"},
        {"field": "training.gradientAccumulationSteps", "before": "1", "after": "2"},
    ]
    cluster = after_preflight(training={"maxSteps": 10, "perDeviceBatchSize": 4})
    report = ProgressReport.model_validate({"progress": PROGRESS, "adjustments": batch})
    cluster.set_pod(running())
    observed = replace(cluster.observed(), progress_reports={cluster.pods["a-train-1"]["metadata"]["uid"]: report})
    assert make_plan(observed, cluster.now, SETTINGS).status["attempts"][0]["adjustments"] == batch
    cluster.play(terminated(40, trainer("Preempted", adjustments=batch), deleted=True))
    assert [attempt["adjustments"] for attempt in cluster.resource["status"]["attempts"]] == [batch, batch]
    smallest = [{**change, "after": after} for change, after in zip(batch, ("1", "4"), strict=True)]
    checkpointing = {"field": "training.gradientCheckpointing", "before": "auto", "after": "always"}
    cluster.play(terminated(31, trainer("OutOfMemory", adjustments=[*smallest, checkpointing])))
    assert cluster.condition("Stalled") == ("True", "OutOfMemory")
    assert "training.perDeviceBatchSize is 1" in cluster.message("Stalled")
    assert cluster.created[-1] == "a-train-2", "nothing is left that the operator could change"


def test_what_a_trainer_chose_is_shown_and_every_later_attempt_begins_there() -> None:
    choice = {"packing": True, "perDeviceBatchSize": 8, "gradientAccumulationSteps": 2, "why": ["it fills the GPU"]}
    cluster = after_preflight(training={"maxSteps": 10})
    report = ProgressReport.model_validate({"progress": PROGRESS, "trainingChoice": choice})
    cluster.set_pod(running())
    observed = replace(cluster.observed(), progress_reports={cluster.pods["a-train-1"]["metadata"]["uid"]: report})
    assert make_plan(observed, cluster.now, SETTINGS).status["trainingChoice"] == choice
    cluster.set_pod(terminated(31, trainer("OutOfMemory", trainingChoice=choice)))
    decided = make_plan(cluster.observed(), cluster.now, SETTINGS)
    assert decided.create is not None
    assert decided.status["trainingChoice"] == choice
    (container,) = decided.create["spec"]["template"]["spec"]["containers"]
    environment = {entry["name"]: entry["value"] for entry in container["env"]}
    assert json.loads(environment["FINETUNE_TRAINING_CHOICE"]) == choice
    training = json.loads(environment["FINETUNE_JOB"])["spec"]["training"]
    assert (training["packing"], training["perDeviceBatchSize"], training["gradientAccumulationSteps"]) == (True, 4, 4)
    assert json.loads(environment["FINETUNE_ADJUSTMENTS"]) == [
        {"field": "training.perDeviceBatchSize", "before": "8", "after": "4"},
        {"field": "training.gradientAccumulationSteps", "before": "2", "after": "4"},
    ]


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
    adjustments = [
        {change["field"]: change["after"] for change in attempt.get("adjustments", [])}
        for attempt in cluster.resource["status"]["attempts"]
    ]
    batch = {"training.perDeviceBatchSize": "4", "training.gradientAccumulationSteps": "2"}
    assert adjustments[:3] == [{}, batch, batch]
    assert adjustments[3] == {**batch, "training.gradientCheckpointing": "always"}, "the edit holds for the next step"


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


def test_the_commit_that_the_preflight_found_is_kept_for_every_attempt() -> None:
    cluster = after_preflight()
    cluster.pods.clear()
    cluster.jobs.clear()
    decided = make_plan(cluster.observed(), cluster.now, SETTINGS)
    assert decided.create is not None
    variables = decided.create["spec"]["template"]["spec"]["containers"][0]["env"]
    assert {"name": "FINETUNE_MODEL_REVISION", "value": "abc123"} in variables


def test_a_job_whose_status_write_was_lost_is_adopted() -> None:
    cluster = FakeCluster()
    cluster.settle()
    cluster.set_pod(terminated(0, PREFLIGHT_PASSED))
    cluster.settle(dies=True)
    assert cluster.created == ["a-preflight", "a-train-1"]
    assert [attempt["jobName"] for attempt in cluster.resource["status"]["attempts"]] == ["a-train-1"]


def test_a_job_in_whose_name_something_else_lives_says_so_and_continues_trying() -> None:
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
