"""A FineTuneJob on a real API server: its Jobs, its status, and what the operator leaves alone."""

import contextlib
import json
import re
from typing import Any

import pytest
from kubernetes.client.exceptions import NotFoundException

from devcluster.cluster import Cluster
from finetune_operator.kube.kinds import ROLE_LABEL
from tools.testing.fake_kubelet import Kubelet, good_run
from tools.testing.kubernetes_api import GROUP, PLURAL, VERSION, Api
from tools.testing.operator_messages import PREFLIGHT_PASSED, SUCCEEDED
from tools.testing.operator_process import Operator
from tools.testing.waiting import until

pytestmark = pytest.mark.cluster


def trainer(reason: str) -> dict[str, Any]:
    return {"kind": "TrainerResult", "reason": reason, "message": "as the trainer says"}


def await_first_reason(api: Api, name: str) -> str:
    """Wait for the reason of the first attempt: the next Job is created before the status is written."""
    reason: str = until("a reason", lambda: api.finetune_job(name)["status"]["attempts"][0].get("reason"))
    return reason


def test_a_good_run(api: Api, operator: Operator) -> None:
    api.create_job("good")
    until("the preflight's Job", lambda: api.job_names("good") == ["good-preflight"])
    api.await_condition("good", "Accepted", "True")
    api.run_pod("good-preflight")
    api.end_pod("good-preflight", 0, PREFLIGHT_PASSED)
    api.await_condition("good", "PreflightPassed", "True")
    api.run_pod("good-train-1")
    api.await_condition("good", "Running", "True")
    api.end_pod("good-train-1", 0, SUCCEEDED)
    status = api.await_condition("good", "Ready", "True")
    assert status["phase"] == "Succeeded"
    assert status["adapter"]["digest"] == SUCCEEDED["adapter"]["digest"]
    assert status["evaluation"]["loss"] == 3.6
    assert status["estimate"]["trainableParameters"] == 10
    assert [attempt["reason"] for attempt in status["attempts"]] == ["Succeeded"]
    assert {"Reconciling", "Stalled"}.isdisjoint(item["type"] for item in status["conditions"])
    assert status["observedGeneration"] == api.finetune_job("good")["metadata"]["generation"]
    story = ["Accepted", "PreflightPassed", "AttemptStarted", "Succeeded"]
    no_node = "Unschedulable"  # there is none, but the pods run all the same

    def list_events() -> list[str]:
        return sorted(event["reason"] for event in api.events() if event["reason"] != no_node)

    until("all events", lambda: len(list_events()) >= len(story))
    assert list_events() == sorted(story)
    logged = re.findall(r"/good(?:, attempt 1)?: (\w+):", operator.log.read_text())
    assert [reason for reason in logged if reason != no_node] == story, "the log tells each transition once"


def test_injected_sidecars_neither_end_an_attempt_nor_keep_its_gpu(api: Api, operator: Operator) -> None:
    def is_ended(job: str) -> bool:
        return bool(api.await_pod(job)["spec"].get("activeDeadlineSeconds") == 1)

    api.create_job("meshed")
    api.end_pod("meshed-preflight", 0, PREFLIGHT_PASSED, {"istio-proxy": {"running": {}}})
    until("the preflight's pod is ended", lambda: is_ended("meshed-preflight"))
    pod = api.await_pod("meshed-train-1")
    sidecars = {"vault-agent": {"terminated": {"exitCode": 0}}, "istio-proxy": {"running": {}}}
    api.set_pod(pod, "Running", {"running": {}}, sidecars)
    api.await_condition("meshed", "Running", "True")
    assert not is_ended("meshed-train-1")
    api.end_pod("meshed-train-1", 0, SUCCEEDED, sidecars)
    api.await_condition("meshed", "Ready", "True")
    assert is_ended("meshed-train-1"), "before the job has finished, after which nobody looks at it"
    assert api.job_names("meshed") == ["meshed-preflight", "meshed-train-1"]


def test_a_node_without_visible_gpus_is_avoided_by_the_next_pod(api: Api, operator: Operator) -> None:
    api.create_job("blind")
    api.end_pod("blind-preflight", 0, PREFLIGHT_PASSED)
    api.bind_pod("blind-train-1", "node-a")
    message = {"kind": "TrainerResult", "reason": "GpuNotVisible", "message": "PyTorch sees 0"}
    api.end_pod("blind-train-1", 36, message)
    affinity = api.await_pod("blind-train-2")["spec"]["affinity"]["nodeAffinity"]
    (preferred,) = affinity["preferredDuringSchedulingIgnoredDuringExecution"]
    assert preferred["preference"]["matchFields"] == [
        {"key": "metadata.name", "operator": "NotIn", "values": ["node-a"]}
    ]
    assert api.finetune_job("blind")["status"]["attempts"][0]["nodeName"] == "node-a"


def test_pods_that_ask_for_a_gpu_come_after_the_preflight_only(api: Api, operator: Operator) -> None:
    api.create_job("wrong-bucket")
    problem = {
        "reason": "BucketNotFound",
        "field": "spec.output.s3.bucket",
        "message": "there is no bucket adapters: create it",
    }
    api.run_pod("wrong-bucket-preflight")
    api.end_pod("wrong-bucket-preflight", 17, {"kind": "PreflightResult", "problems": [problem]})
    api.await_condition("wrong-bucket", "Stalled", "True", "BucketNotFound")
    assert (
        api.message("wrong-bucket", "PreflightPassed")
        == "spec.output.s3.bucket: there is no bucket adapters: create it"
    )
    assert api.job_names("wrong-bucket") == ["wrong-bucket-preflight"]
    containers = [job["spec"]["template"]["spec"]["containers"][0] for job in api.jobs("wrong-bucket")]
    assert "nvidia.com/gpu" not in json.dumps([container["resources"] for container in containers])


def test_the_trainer_asks_for_its_gpu_and_is_restricted(api: Api, operator: Operator) -> None:
    api.create_job("gpu")
    api.end_pod("gpu-preflight", 0, PREFLIGHT_PASSED)
    until("the trainer's Job", lambda: "gpu-train-1" in api.job_names("gpu"))
    (job,) = [job for job in api.jobs("gpu") if job["metadata"]["name"] == "gpu-train-1"]
    pod = job["spec"]["template"]["spec"]
    container = pod["containers"][0]
    assert (
        container["resources"]["limits"]["nvidia.com/gpu"]
        == container["resources"]["requests"]["nvidia.com/gpu"]
        == "1"
    )
    assert job["spec"]["backoffLimit"] == 0
    assert pod["automountServiceAccountToken"] is False
    variables = {variable["name"]: variable.get("value") for variable in container["env"]}
    assert variables["FINETUNE_MODEL_REVISION"] == "abc123"
    assert json.loads(variables["FINETUNE_JOB"])["metadata"]["uid"] == api.finetune_job("gpu")["metadata"]["uid"]


def test_pods_meet_the_restricted_standard(api: Api, operator: Operator) -> None:
    """The API server itself judges them."""
    api.core.patch_namespace(
        api.namespace, {"metadata": {"labels": {"pod-security.kubernetes.io/enforce": "restricted"}}}
    )
    api.create_job("restricted")
    api.end_pod("restricted-preflight", 0, PREFLIGHT_PASSED)
    assert api.await_pod("restricted-train-1")


def test_a_preempted_attempt_is_followed_at_once(api: Api, operator: Operator) -> None:
    api.create_job("preempted", failurePolicy={"retries": {"onError": 0}})
    api.end_pod("preempted-preflight", 0, PREFLIGHT_PASSED)
    api.run_pod("preempted-train-1")
    api.end_pod("preempted-train-1", 40, trainer("Preempted"))
    api.run_pod("preempted-train-2")
    api.end_pod("preempted-train-2", 0, SUCCEEDED)
    status = api.await_condition("preempted", "Ready", "True")
    assert [attempt["reason"] for attempt in status["attempts"]] == ["Preempted", "Succeeded"]


def test_an_attempt_that_does_not_fit_is_followed_by_a_smaller_one(api: Api, operator: Operator) -> None:
    api.create_job("large", training={"maxSteps": 10, "perDeviceBatchSize": 4})
    api.run_pod("large-preflight")
    api.end_pod("large-preflight", 0, PREFLIGHT_PASSED)
    api.end_pod("large-train-1", 31, trainer("OutOfMemory"))
    api.end_pod("large-train-2", 0, SUCCEEDED)
    status = api.await_condition("large", "Succeeded", "True")
    assert [attempt.get("adjustments", []) for attempt in status["attempts"]] == [
        [],
        [
            {"field": "training.perDeviceBatchSize", "before": "4", "after": "2"},
            {"field": "training.gradientAccumulationSteps", "before": "1", "after": "2"},
        ],
    ]


def test_a_deleted_pod_ends_the_attempt(api: Api, operator: Operator) -> None:
    api.create_job("pod-deleted")
    api.end_pod("pod-deleted-preflight", 0, PREFLIGHT_PASSED)
    pod = api.run_pod("pod-deleted-train-1")
    api.core.delete_namespaced_pod(pod["metadata"]["name"], api.namespace, grace_period_seconds=0)
    api.run_pod("pod-deleted-train-2")
    assert await_first_reason(api, "pod-deleted") == "Preempted"


def test_a_deleted_job_ends_the_attempt(api: Api, operator: Operator) -> None:
    api.create_job("job-deleted")
    api.end_pod("job-deleted-preflight", 0, PREFLIGHT_PASSED)
    api.await_pod("job-deleted-train-1")
    api.batch.delete_namespaced_job(
        "job-deleted-train-1", api.namespace, propagation_policy="Background", grace_period_seconds=0
    )
    for pod in api.pods("job-deleted-train-1"):
        with contextlib.suppress(NotFoundException):  # the garbage collector was first
            api.core.delete_namespaced_pod(pod["metadata"]["name"], api.namespace, grace_period_seconds=0)
    api.await_pod("job-deleted-train-2")
    assert await_first_reason(api, "job-deleted") == "Preempted"


def test_errors_use_up_the_budget(api: Api, operator: Operator) -> None:
    api.create_job("bad", failurePolicy={"retries": {"onError": 1}})
    with Kubelet(api, "bad", lambda job: (0, PREFLIGHT_PASSED) if "preflight" in job else (1, trainer("TrainerError"))):
        status = api.await_condition("bad", "Stalled", "True", "TrainerError")
    assert [attempt["reason"] for attempt in status["attempts"]] == ["TrainerError", "TrainerError"]
    assert api.condition("bad", "Succeeded") == ("False", "TrainerError")
    assert api.job_names("bad") == ["bad-preflight", "bad-train-1", "bad-train-2"]


def test_a_spec_that_the_schema_lets_pass_but_that_is_wrong_is_not_accepted(api: Api, operator: Operator) -> None:
    api.create_job("wrong-modules", method={"lora": {"targetModules": "q_proj"}})
    api.await_condition("wrong-modules", "Accepted", "False", "SpecInvalid")
    accepted = api.message("wrong-modules", "Accepted")
    assert accepted.startswith("spec.method.lora")
    assert "[q_proj]" in accepted
    assert api.job_names("wrong-modules") == []


def test_a_spec_that_no_job_can_be_made_of_is_not_accepted(api: Api, operator: Operator) -> None:
    api.create_job("wrong-label", podTemplate={"labels": {"not a label": "x"}})
    api.await_condition("wrong-label", "Accepted", "False", "SpecInvalid")
    assert "not a label" in api.message("wrong-label", "Accepted")


def test_a_job_of_somebody_else_in_the_way_is_named_and_left_alone(api: Api, operator: Operator) -> None:
    container = {"name": "x", "image": "x"}
    body = {
        "metadata": {"name": "in-the-way-preflight"},
        "spec": {"template": {"spec": {"restartPolicy": "Never", "containers": [container]}}},
    }
    api.batch.create_namespaced_job(api.namespace, body)
    api.create_job("in-the-way")
    api.await_condition("in-the-way", "Reconciling", "True", "Pending")
    assert "in-the-way-preflight" in api.message("in-the-way", "Ready")
    assert api.jobs("in-the-way") == []


def test_the_same_name_again_is_a_new_job(api: Api, operator: Operator) -> None:
    with Kubelet(api, "twice", good_run):
        first = api.create_job("twice")
        api.await_condition("twice", "Ready", "True")
        api.custom.delete_namespaced_custom_object(
            "finetune-operator.io", "v1alpha1", api.namespace, "finetunejobs", "twice"
        )
        second = api.create_job("twice")
        api.await_condition("twice", "Ready", "True")
    assert {job["metadata"]["ownerReferences"][0]["uid"] for job in api.jobs("twice")} == {second["metadata"]["uid"]}
    assert first["metadata"]["uid"] != second["metadata"]["uid"]


def test_a_name_of_two_hundred_characters(api: Api, operator: Operator) -> None:
    name = "n" * 200
    with Kubelet(api, name, good_run):
        api.create_job(name)
        api.await_condition(name, "Ready", "True")


def test_the_operator_writes_nothing_on_a_finetunejob_but_status(api: Api, operator: Operator) -> None:
    with Kubelet(api, "quiet", good_run):
        api.create_job("quiet")
        api.await_condition("quiet", "Ready", "True")
    meta = api.finetune_job("quiet")["metadata"]
    assert "annotations" not in meta
    assert "finalizers" not in meta
    assert {entry.get("subresource") for entry in meta["managedFields"] if entry["manager"] == "finetune-operator"} == {
        "status"
    }


def test_the_api_server_sends_the_operator_only_what_is_ours(api: Api, operator: Operator) -> None:
    def create(name: str, labels: dict[str, str]) -> None:
        body = {"metadata": {"name": name, "labels": labels}, "data": {}}
        api.core.create_namespaced_config_map(api.namespace, body)

    def seen() -> float:
        return operator.metric("finetune_operator_watch_events_total", kind="ConfigMap")

    before = seen()
    for number in range(20):
        create(f"other-{number}", {"app.kubernetes.io/managed-by": "finetune-operator"})
    create("ours", {ROLE_LABEL: "desired-state"})
    until("the event of our ConfigMap", lambda: seen() > before)
    assert seen() == before + 1


def test_a_pod_that_a_quota_refuses_says_so_and_starts_when_it_may(
    cluster: Cluster, api: Api, operator: Operator
) -> None:
    with api.forbid_pods():
        api.create_job("refused")
        api.create_job("impatient", pendingDeadlineSeconds=5)
        api.await_condition("refused", "PreflightPassed", "Unknown", "PodRefused")
        ready = api.message("refused", "Ready")
        assert "is forbidden: exceeded quota: no-pods" in ready
        assert "raise the quota" in ready
        assert "PodRefused" in cluster.kubectl("--namespace", api.namespace, "get", "ftj", "refused")
        api.await_condition("impatient", "Stalled", "True", "PodRefused")
        until("its Job is gone", lambda: not api.job_names("impatient"))
    api.run_pod("refused-preflight")
    api.await_condition("refused", "Ready", "Unknown", "PreflightRunning")


def test_a_job_that_a_person_suspends_gives_no_second_run(api: Api, operator: Operator) -> None:
    def suspend(suspended: bool) -> None:
        body = {"spec": {"suspend": suspended}}
        api.batch.patch_namespaced_job("held-train-1", api.namespace, body, field_manager="a-person")

    api.create_job("held")
    api.end_pod("held-preflight", 0, PREFLIGHT_PASSED)
    api.bind_pod("held-train-1", "node-b")
    api.run_pod("held-train-1")
    api.await_condition("held", "Running", "True")
    suspend(True)
    (pod,) = until("the pod stops", lambda: [pod for pod in api.pods("held-train-1") if is_deleted(pod)])
    api.end_pod("held-train-1", 40, trainer("Preempted"))
    api.core.delete_namespaced_pod(pod["metadata"]["name"], api.namespace, grace_period_seconds=0)
    api.await_condition("held", "Running", "False", "Suspended")
    assert "held-train-1 is suspended by a-person" in api.message("held", "Ready")
    suspend(False)
    api.run_pod("held-train-1")
    api.end_pod("held-train-1", 0, SUCCEEDED)
    status = api.await_condition("held", "Ready", "True")
    assert [attempt["reason"] for attempt in status["attempts"]] == ["Suspended", "Succeeded"]
    assert api.job_names("held") == ["held-preflight", "held-train-1"]


def is_deleted(pod: dict[str, Any]) -> bool:
    return "deletionTimestamp" in pod["metadata"]


def test_a_suspended_job_holds_no_gpu_and_continues_when_it_is_resumed(api: Api, operator: Operator) -> None:
    def suspend(suspended: bool) -> None:
        body = {"spec": {"suspend": suspended}}
        api.custom.patch_namespaced_custom_object(GROUP, VERSION, api.namespace, PLURAL, "paused", body)

    api.create_job("paused", suspend=True)
    api.await_condition("paused", "Suspended", "True")
    assert api.job_names("paused") == []
    suspend(False)
    api.end_pod("paused-preflight", 0, PREFLIGHT_PASSED)
    api.bind_pod("paused-train-1", "node-c")
    api.run_pod("paused-train-1")
    api.await_condition("paused", "Running", "True")
    suspend(True)
    api.await_condition("paused", "Suspended", "False", "Suspending")
    (pod,) = until("the pod stops", lambda: [pod for pod in api.pods("paused-train-1") if is_deleted(pod)])
    api.end_pod("paused-train-1", 40, trainer("Preempted"))
    api.await_condition("paused", "Suspended", "True")
    with contextlib.suppress(NotFoundException):
        api.core.delete_namespaced_pod(pod["metadata"]["name"], api.namespace, grace_period_seconds=0)
    assert "paused-train-1" not in api.job_names("paused"), "a preflight that is not marked as ended goes too"
    suspend(False)
    api.end_pod("paused-train-2", 0, SUCCEEDED)
    status = api.await_condition("paused", "Ready", "True")
    assert [attempt["reason"] for attempt in status["attempts"]] == ["Suspended", "Succeeded"]


def test_a_finished_job_is_deleted_after_its_time_to_live(api: Api, operator: Operator) -> None:
    with Kubelet(api, "brief", good_run):
        api.create_job("brief", ttlSecondsAfterFinished=1)
        expired = until("the event", lambda: [event for event in api.events() if event["reason"] == "Expired"])
    assert SUCCEEDED["adapter"]["digest"] in expired[0]["note"]
    await_absence(api, "brief")
    until("its Jobs are gone", lambda: api.job_names("brief") == [])


def test_a_refused_job_is_deleted_after_its_time_to_live_though_nothing_happens_to_it(
    api: Api, operator: Operator
) -> None:
    api.create_job("brief-label", podTemplate={"labels": {"not a label": "x"}}, ttlSecondsAfterFinished=1)
    await_absence(api, "brief-label")


def await_absence(api: Api, name: str) -> None:
    def is_gone() -> bool:
        answer = api.custom.list_namespaced_custom_object(GROUP, VERSION, api.namespace, PLURAL)
        return name not in [item["metadata"]["name"] for item in answer["items"]]

    until(f"{name} is gone", is_gone)
