"""Classify a Job by the Job and its pods."""

import pytest

from finetune_api.lenient import find_unstorable
from finetune_api.messages import TrainerResult
from finetune_api.reasons import Reason
from finetune_operator.kube.kinds import Object
from finetune_operator.policies.outcome import Ended, Running, Stopping, classify_pod
from finetune_operator.policies.refusal import find_remedy
from finetune_operator.policies.waiting import Waiting
from tests.operator.fake_cluster import pod, running, terminated
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
JOB: Object = {"metadata": {"name": "a-train-1", "uid": "job-uid"}, "status": {}}


def job(kind: str, message: str = "") -> Object:
    return {**JOB, "status": {"conditions": [{"type": kind, "status": "True", "message": message}]}}


FAILED = job("Failed")


def trainer(reason: str, message: str = "as the trainer says") -> dict[str, str]:
    return {"kind": "TrainerResult", "reason": reason, "message": message}


def waiting(reason: str, message: str = "") -> Object:
    return {"waiting": {"reason": reason, "message": message}}


def suspended_by(manager: str) -> Object:
    entry = {"manager": manager, "fieldsV1": {"f:spec": {"f:suspend": {}}}}
    return {**JOB, "metadata": {**JOB["metadata"], "managedFields": [entry]}, "spec": {"suspend": True}}


SUSPENDED = suspended_by("kueue")
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
        ("a message whose kind is no word", terminated(1, {"kind": ["x"]}), Reason.TRAINER_ERROR, "x"),
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
    outcome = classify_pod(FAILED, [item], "trainer")
    assert isinstance(outcome, Ended), name
    assert outcome.reason == reason, name
    assert text in outcome.message, name


@pytest.mark.parametrize("said", [SUCCEEDED, PREFLIGHT_PASSED])
def test_ended_well(said: Object) -> None:
    outcome = classify_pod(JOB, [terminated(0, said)], "trainer")
    assert isinstance(outcome, Ended)
    assert outcome.reason is None
    assert outcome.result is not None
    assert outcome.exit_code == 0


def test_a_trainer_that_was_killed_after_its_result_has_succeeded() -> None:
    outcome = classify_pod(JOB, [terminated(137, SUCCEEDED, deleted=True)], "trainer")
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
    outcome = classify_pod(jobs, [], "trainer")
    assert isinstance(outcome, Ended), name
    assert outcome.reason is Reason.PREEMPTED
    assert text in outcome.message


WARNINGS = {
    "job-uid": 'Error creating: pods "a" is forbidden: exceeded quota: gpus, used: pods=1, limited: 1',
    "pod-uid": 'MountVolume.SetUp failed for volume "ca" : configmap "company-ca" not found',
}


@pytest.mark.parametrize(
    ("name", "pods", "warnings", "reason", "texts"),
    [
        ("no pod yet", [], {}, Reason.PENDING, ["starting"]),
        (
            "the API server refuses the pod",
            [],
            WARNINGS,
            Reason.POD_REFUSED,
            ['refuses the pod: pods "a" is forbidden: exceeded quota: gpus', "limited: 1. The pod starts when others"],
        ),
        ("a pod that was just created", [pod()], {}, Reason.PENDING, ["starting"]),
        ("the container is being created", [pod(waiting("ContainerCreating"))], {}, Reason.PENDING, ["starting"]),
        (
            "a volume is not there",
            [pod(waiting("ContainerCreating"))],
            WARNINGS,
            Reason.CONTAINER_NOT_STARTED,
            ['configmap "company-ca" not found. Create what it names in this namespace'],
        ),
        (
            "an old warning about volumes that are there by now",
            [pod(waiting("ContainerCreating"), conditions=[{"type": "PodReadyToStartContainers", "status": "True"}])],
            WARNINGS,
            Reason.PENDING,
            ["starting"],
        ),
        (
            "no node fits",
            [pod(conditions=[UNSCHEDULABLE])],
            WARNINGS,
            Reason.UNSCHEDULABLE,
            ["0/3 nodes have nvidia.com/gpu. The pod starts when a node fits"],
        ),
        (
            "the image cannot be pulled",
            [pod(BACKOFF)],
            {},
            Reason.IMAGE_PULL_FAILED,
            ["Container trainer: ImagePullBackOff: manifest unknown. Check the image's name", "imagePullSecrets"],
        ),
        (
            "a key of a Secret is missing",
            [pod(waiting("CreateContainerConfigError", 'secret "hub" not found'))],
            {},
            Reason.CONTAINER_NOT_STARTED,
            ['CreateContainerConfigError: secret "hub" not found. Create what it names'],
        ),
        (
            "the image has no such command",
            [pod(waiting("CreateContainerError", "executable file not found"))],
            {},
            Reason.CONTAINER_NOT_STARTED,
            ["executable file not found"],
        ),
        (
            "an init container that somebody injected",
            [
                pod(
                    waiting("PodInitializing"),
                    status={"initContainerStatuses": [{"name": "vault", "state": waiting("CrashLoopBackOff", "why")}]},
                )
            ],
            {},
            Reason.CONTAINER_NOT_STARTED,
            ["Container vault: CrashLoopBackOff: why"],
        ),
    ],
)
def test_waiting(name: str, pods: list[Object], warnings: dict[str, str], reason: Reason, texts: list[str]) -> None:
    outcome = classify_pod(JOB, pods, "trainer", warnings)
    assert isinstance(outcome, Waiting), name
    assert outcome.reason is reason, name
    assert [text for text in texts if text not in outcome.message] == [], outcome.message


DELETED = terminated(137, deleted=True)


@pytest.mark.parametrize(
    ("name", "batch_job", "pods", "kind"),
    [
        ("its Job may make another pod", JOB, [DELETED], Stopping),
        ("its Job makes no other pod", FAILED, [DELETED], Ended),
        ("its Job is gone", None, [DELETED], Ended),
        ("its Job is being deleted", {**JOB, "metadata": {**JOB["metadata"], "deletionTimestamp": "x"}}, [], Ended),
        ("its Job is gone, and it has not started", None, [pod()], Stopping),
        ("its Job is suspended", SUSPENDED, [DELETED], Waiting),
        ("its Job is suspended, and it is gone", SUSPENDED, [], Waiting),
        ("its Job is suspended, and it still runs", SUSPENDED, [running()], Running),
        ("its Job was suspended when it had failed for good", {**SUSPENDED, "status": FAILED["status"]}, [], Ended),
        ("its Job was suspended too late", SUSPENDED, [terminated(31, trainer("OutOfMemory"))], Ended),
        ("it has made the adapter", JOB, [terminated(0, SUCCEEDED, deleted=True)], Ended),
    ],
)
def test_a_pod_that_is_taken_away_ends_a_run_only_if_no_other_follows(
    name: str, batch_job: Object | None, pods: list[Object], kind: type
) -> None:
    assert type(classify_pod(batch_job, pods, "trainer")) is kind, name


def test_who_suspended_a_job_is_reported() -> None:
    outcome = classify_pod(SUSPENDED, [], "trainer")
    assert isinstance(outcome, Waiting)
    assert outcome.reason is Reason.SUSPENDED
    assert "The Job a-train-1 is suspended by kueue" in outcome.message


@pytest.mark.parametrize(
    ("name", "conditions", "spec", "lost"),
    [
        ("all is well", {"Ready": "True", "ContainersReady": "True"}, {}, False),
        ("the node controller does not hear of the node", {"Ready": "False", "ContainersReady": "True"}, {}, True),
        ("a sidecar is not ready", {"Ready": "False", "ContainersReady": "False"}, {}, False),
        ("a gate is closed", {"Ready": "False", "ContainersReady": "True"}, {"readinessGates": [{}]}, False),
    ],
)
def test_a_pod_on_a_lost_node(name: str, conditions: dict[str, str], spec: Object, lost: bool) -> None:
    item = running()
    item["status"]["conditions"] = [{"type": kind, "status": status} for kind, status in conditions.items()]
    item["spec"] |= spec
    outcome = classify_pod(JOB, [item], "trainer")
    assert isinstance(outcome, Running)
    assert outcome.lost is lost, name


@pytest.mark.parametrize(
    ("words", "remedy"),
    [
        ("failed quota: q: must specify limits.memory for: trainer", "spec.resources"),
        ("exceeded quota: gpus", "raise the quota"),
        ('violates PodSecurity "restricted:latest": hostPath volumes', "spec.podTemplate"),
        ('admission webhook "policy.example.com" denied the request: no', "administrator of this webhook"),
        ("no PriorityClass with name high was found", "spec.podTemplate.priorityClassName"),
        ('pod rejected: RuntimeClass "nvidia" not found', "spec.podTemplate.runtimeClassName"),
        ('error looking up service account ns/x: serviceaccount "x" not found', "Create this service account"),
        ("maximum memory usage per Container is 1Gi, but limit is 2Gi", "LimitRange"),
        ("something new", "ask the administrator"),
    ],
)
def test_a_refusal_comes_with_its_remedy(words: str, remedy: str) -> None:
    assert remedy in find_remedy(words)


def test_a_running_container_runs_though_its_pod_is_being_deleted() -> None:
    item = pod({"running": {}}, phase="Running", deleted=True)
    assert isinstance(classify_pod(FAILED, [item], "trainer"), Running)


def test_the_pod_that_still_runs_decides() -> None:
    assert isinstance(classify_pod(JOB, [terminated(1), running()], "trainer"), Running)
    assert isinstance(classify_pod(JOB, [running(), terminated(1)], "trainer"), Running)


@pytest.mark.parametrize("sidecar", [{"running": {}}, {"terminated": {"exitCode": 0}}, {"waiting": {"reason": "x"}}])
def test_only_our_own_container_counts(sidecar: Object) -> None:
    assert isinstance(classify_pod(JOB, [running(sidecar=sidecar)], "trainer"), Running)
    outcome = classify_pod(JOB, [terminated(31, trainer("OutOfMemory"), sidecar=sidecar)], "trainer")
    assert isinstance(outcome, Ended)
    assert (outcome.reason, outcome.exit_code) == (Reason.OUT_OF_MEMORY, 31)


def test_a_reason_and_fields_of_a_newer_trainer_are_read_and_kept() -> None:
    message = {
        **trainer("SolarFlare", "the sun"),
        "checkpoint": {"uri": "s3://b/c", "step": 1, "savedAt": "x", "new": 1},
    }
    outcome = classify_pod(JOB, [terminated(36, message)], "trainer")
    assert isinstance(outcome, Ended)
    assert (outcome.reason, outcome.message) == ("SolarFlare", "the sun")
    newer = {**SUCCEEDED, "adapter": {**SUCCEEDED["adapter"], "aFieldOfANewerTrainer": 1}}
    outcome = classify_pod(JOB, [terminated(0, newer)], "trainer")
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
    outcome = classify_pod(JOB, [terminated(0, SUCCEEDED | wrong)], "trainer")
    assert isinstance(outcome, Ended)
    assert isinstance(outcome.result, TrainerResult)
    assert outcome.result.adapter is not None
    assert not list(find_unstorable(outcome.result.to_json()))
    assert "yesterday" not in str(outcome.result)


def test_a_preflight_whose_problems_cannot_be_read_has_not_passed() -> None:
    outcome = classify_pod(JOB, [terminated(0, {**PROBLEMS, "problems": [{"text": 1}]})], "preflight")
    assert not isinstance(outcome, Ended) or outcome.reason is not None
