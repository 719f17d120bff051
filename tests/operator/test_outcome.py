"""Classify a Job by the Job and its pods."""

import pytest

from finetune_api.lenient import find_unstorable
from finetune_api.messages import TrainerResult
from finetune_api.reasons import Reason
from finetune_api.timestamps import format_timestamp
from finetune_operator.kube.kinds import Object
from finetune_operator.policies.outcome import Ended, Running, Waiting, classify_pod
from tests.operator.fake_cluster import NOW, pod, running, terminated
from tools.testing.operator_messages import PREFLIGHT_PASSED, SUCCEEDED

UNSCHEDULABLE = {
    "type": "PodScheduled",
    "status": "False",
    "reason": "Unschedulable",
    "message": "0/3 nodes have nvidia.com/gpu",
}
DISRUPTED = {
    "type": "DisruptionTarget",
    "status": "True",
    "reason": "PreemptionByScheduler",
    "message": "for a more important pod",
}
BACKOFF = {"waiting": {"reason": "ImagePullBackOff", "message": "manifest unknown"}}
JOB: Object = {"metadata": {"name": "a-train-1"}, "status": {}}


def job(kind: str, message: str = "") -> Object:
    condition = {"type": kind, "status": "True", "message": message, "lastTransitionTime": format_timestamp(NOW)}
    return {"metadata": {"name": "a-train-1"}, "status": {"conditions": [condition]}}


def trainer(reason: str, message: str = "as the trainer says") -> dict[str, str]:
    return {"kind": "TrainerResult", "reason": reason, "message": message}


PROBLEMS = {
    "kind": "PreflightResult",
    "problems": [
        {"reason": "PreflightError", "field": "spec.model.uri", "message": "the hub does not answer"},
        {"reason": "BucketNotFound", "field": "spec.output.s3.bucket", "message": "there is no bucket x: create it"},
    ],
}


@pytest.mark.parametrize(
    ("name", "item", "reason", "text"),
    [
        (
            "the trainer's own words",
            terminated(32, trainer("LossDiverged")),
            Reason.LOSS_DIVERGED,
            "as the trainer says",
        ),
        (
            "its own words count though the pod is deleted",
            terminated(40, trainer("Preempted"), deleted=True),
            Reason.PREEMPTED,
            "trainer says",
        ),
        (
            "a crash while it is deleted is a preemption",
            terminated(1, trainer("TrainerError"), deleted=True),
            Reason.PREEMPTED,
            "deleted",
        ),
        ("a message that is lost leaves the exit code", terminated(12), Reason.DATASET_NOT_FOUND, "exited with 12"),
        (
            "a message that is cut is no result",
            terminated(31, '{"kind": "Trai'),
            Reason.OUT_OF_MEMORY,
            "exited with 31",
        ),
        (
            "an exit code that is not ours, with the log's tail",
            terminated(3, "Traceback: boom"),
            Reason.TRAINER_ERROR,
            "boom",
        ),
        ("SIGTERM without a word", terminated(143), Reason.PREEMPTED, "143"),
        ("killed by the kernel", terminated(137, reason="OOMKilled"), Reason.HOST_OUT_OF_MEMORY, "limits.memory"),
        ("killed at the end of its grace period", terminated(137, deleted=True), Reason.PREEMPTED, "deleted"),
        (
            "what NCCL has aborted is told from its last words",
            terminated(134, "[PG ID 0 Rank 0] ProcessGroupNCCL's watchdog got stuck"),
            Reason.NCCL_ERROR,
            "watchdog got stuck",
        ),
        ("0 without a result is an error", terminated(0, "done"), Reason.TRAINER_ERROR, "exited with 0"),
        ("a message of a newer kind", terminated(1, {"kind": "Other"}), Reason.TRAINER_ERROR, "Other"),
        (
            "a preflight's problems, whatever its exit code",
            terminated(0, PROBLEMS),
            Reason.BUCKET_NOT_FOUND,
            "spec.output.s3.bucket: there is no",
        ),
        ("evicted", pod(phase="Failed", status={"reason": "Evicted", "message": "disk"}), Reason.PREEMPTED, "disk"),
        (
            "refused by the node",
            pod(phase="Failed", status={"reason": "UnexpectedAdmissionError"}),
            Reason.NODE_ERROR,
            "The node did not run the pod: UnexpectedAdmissionError",
        ),
        (
            "preempted by the scheduler",
            {**terminated(137), "status": {**terminated(137)["status"], "conditions": [DISRUPTED]}},
            Reason.PREEMPTED,
            "for a more important pod",
        ),
    ],
)
def test_ended(name: str, item: Object, reason: Reason, text: str) -> None:
    outcome = classify_pod(JOB, [item], "trainer", NOW, 120)
    assert isinstance(outcome, Ended), name
    assert (outcome.reason, outcome.at) == (reason, NOW), name
    assert text in outcome.message, name


@pytest.mark.parametrize("said", [SUCCEEDED, PREFLIGHT_PASSED])
def test_ended_well(said: Object) -> None:
    outcome = classify_pod(JOB, [terminated(0, said)], "trainer", NOW, 120)
    assert isinstance(outcome, Ended)
    assert outcome.reason is None
    assert outcome.result is not None
    assert outcome.exit_code == 0


def test_a_trainer_that_was_killed_after_its_result_has_succeeded() -> None:
    outcome = classify_pod(JOB, [terminated(137, SUCCEEDED, deleted=True)], "trainer", NOW, 120)
    assert isinstance(outcome, Ended)
    assert outcome.reason is None


@pytest.mark.parametrize(
    ("name", "jobs", "text"),
    [
        ("the Job is gone", None, "Job was deleted"),
        (
            "the Job failed and its pod is gone",
            job("Failed", "Job has reached the specified backoff limit"),
            "backoff limit",
        ),
        ("the Job is complete and its pod is gone", job("Complete"), "before its result was read"),
    ],
)
def test_ended_without_a_pod(name: str, jobs: Object | None, text: str) -> None:
    outcome = classify_pod(jobs, [], "trainer", NOW, 120)
    assert isinstance(outcome, Ended), name
    assert outcome.reason is Reason.PREEMPTED
    assert text in outcome.message


@pytest.mark.parametrize(
    ("name", "pods", "reason", "text"),
    [
        ("no pod yet", [], Reason.PENDING, "starting"),
        ("a pod that was just created", [pod()], Reason.PENDING, "starting"),
        (
            "the container is being created",
            [pod({"waiting": {"reason": "ContainerCreating"}})],
            Reason.PENDING,
            "starting",
        ),
        ("no node fits", [pod(conditions=[UNSCHEDULABLE])], Reason.UNSCHEDULABLE, "0/3 nodes have nvidia.com/gpu"),
        ("the image cannot be pulled", [pod(BACKOFF)], Reason.IMAGE_PULL_FAILED, "manifest unknown"),
    ],
)
def test_waiting(name: str, pods: list[Object], reason: Reason, text: str) -> None:
    outcome = classify_pod(JOB, pods, "trainer", NOW, 120)
    assert isinstance(outcome, Waiting), name
    assert outcome.reason is reason
    assert text in outcome.message


def test_an_image_that_cannot_be_pulled_for_long_ends_the_attempt() -> None:
    outcome = classify_pod(JOB, [pod(BACKOFF)], "trainer", NOW, 0)
    assert isinstance(outcome, Ended)
    assert outcome.reason is Reason.IMAGE_PULL_FAILED


def test_a_running_container_runs_though_its_pod_is_being_deleted() -> None:
    item = pod({"running": {}}, phase="Running", deleted=True)
    assert isinstance(classify_pod(job("Failed"), [item], "trainer", NOW, 120), Running)


def test_the_pod_that_still_runs_decides() -> None:
    assert isinstance(classify_pod(JOB, [terminated(1), running()], "trainer", NOW, 120), Running)
    assert isinstance(classify_pod(JOB, [running(), terminated(1)], "trainer", NOW, 120), Running)


@pytest.mark.parametrize("sidecar", [{"running": {}}, {"terminated": {"exitCode": 0}}, {"waiting": {"reason": "x"}}])
def test_only_our_own_container_counts(sidecar: Object) -> None:
    assert isinstance(classify_pod(JOB, [running(sidecar=sidecar)], "trainer", NOW, 120), Running)
    outcome = classify_pod(JOB, [terminated(31, trainer("OutOfMemory"), sidecar=sidecar)], "trainer", NOW, 120)
    assert isinstance(outcome, Ended)
    assert (outcome.reason, outcome.exit_code) == (Reason.OUT_OF_MEMORY, 31)


def test_a_reason_and_fields_of_a_newer_trainer_are_read_and_kept() -> None:
    said = {**trainer("SolarFlare", "the sun"), "checkpoint": {"uri": "s3://b/c", "step": 1, "savedAt": "x", "new": 1}}
    outcome = classify_pod(JOB, [terminated(36, said)], "trainer", NOW, 120)
    assert isinstance(outcome, Ended)
    assert (outcome.reason, outcome.message) == ("SolarFlare", "the sun")
    newer = {**SUCCEEDED, "adapter": {**SUCCEEDED["adapter"], "aFieldOfANewerTrainer": 1}}
    outcome = classify_pod(JOB, [terminated(0, newer)], "trainer", NOW, 120)
    assert isinstance(outcome, Ended)
    assert isinstance(outcome.result, TrainerResult)
    assert outcome.result.adapter is not None


@pytest.mark.parametrize(
    "wrong",
    [
        {"evaluation": {"baseLoss": float("nan"), "loss": 1.0, "improvementPercent": float("-inf"), "rows": 3}},
        {"checkpoint": {"uri": "s3://b/c", "step": 1, "savedAt": "yesterday"}},
        {"progress": {"step": 2**70}},
    ],
    ids=["NaN", "a wrong time", "an integer of 70 bits"],
)
def test_a_finished_adapter_is_not_lost_for_values_that_cannot_be_stored(wrong: Object) -> None:
    outcome = classify_pod(JOB, [terminated(0, SUCCEEDED | wrong)], "trainer", NOW, 120)
    assert isinstance(outcome, Ended)
    assert isinstance(outcome.result, TrainerResult)
    assert outcome.result.adapter is not None
    assert not list(find_unstorable(outcome.result.to_json()))
    assert "yesterday" not in str(outcome.result)


def test_a_preflight_whose_problems_cannot_be_read_has_not_passed() -> None:
    outcome = classify_pod(JOB, [terminated(0, {**PROBLEMS, "problems": [{"text": 1}]})], "preflight", NOW, 120)
    assert not isinstance(outcome, Ended) or outcome.reason is not None
