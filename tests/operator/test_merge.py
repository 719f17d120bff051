"""``output.mergedModel``: a Job without a GPU merges the finished adapter, which is ready whatever becomes of that."""

from collections.abc import Callable
from typing import Any

import pytest

from finetune_api.core_v1.quantity import parse_quantity
from finetune_api.finetunejob import FineTuneJob
from finetune_operator.kube.kinds import ROLE_LABEL
from finetune_operator.policies.finished import is_up_to_date
from finetune_operator.policies.pod_state import has_ended
from finetune_operator.reconcile.finetunejob.plan import plan_blocked, plan_refused
from finetune_operator.resources.injected import covers
from finetune_operator.resources.jobs import ResolvedModel, build_merge_job
from tests.operator.fake_cluster import SETTINGS, FakeCluster, pod, running, terminated
from tests.operator.lives import after_preflight
from tools.testing.kubernetes_api import Api
from tools.testing.operator_messages import MERGED, PREFLIGHT_PASSED, SPEC, SUCCEEDED

OUTPUT: dict[str, Any] = {**SPEC["output"], "mergedModel": True}
GIB = 2**30


def result(reason: str) -> dict[str, Any]:
    return {"kind": "MergeResult", "reason": reason, "message": "why"}


def merging(**spec: Any) -> FakeCluster:
    """Return a job whose adapter is finished, and whose merge has a Job."""
    cluster = after_preflight(output=OUTPUT, **spec)
    cluster.play(terminated(0, SUCCEEDED))
    return cluster


def container(cluster_spec: dict[str, Any], **estimate: Any) -> dict[str, Any]:
    """Return the merge's container as a plan creates it."""
    cluster = FakeCluster({**SPEC, "output": OUTPUT, **cluster_spec})
    cluster.settle()
    cluster.play(terminated(0, PREFLIGHT_PASSED | ({"estimate": estimate} if estimate else {})))
    cluster.set_pod(terminated(0, SUCCEEDED))
    cluster.apply(cluster.plan())
    created = cluster.plan().create
    assert created is not None
    spec: dict[str, Any] = created["spec"]["template"]["spec"]
    (only_container,) = spec["containers"]
    return {**only_container, "pod": spec}


@pytest.mark.parametrize(("output", "seconds"), [(OUTPUT, 0), (SPEC["output"], None)], ids=["merged", "not merged"])
def test_the_merge_begins_without_another_event(output: dict[str, Any], seconds: float | None) -> None:
    """The trainer's Job may have ended before the pass that reads its result."""
    cluster = after_preflight(output=output)
    cluster.set_pod(terminated(0, SUCCEEDED))
    assert cluster.plan().requeue_after == seconds


def test_the_adapter_is_ready_at_once_and_then_a_pod_without_a_gpu_merges_it() -> None:
    cluster = merging()
    assert cluster.created[-1] == "a-merge"
    assert cluster.condition("Ready") == cluster.condition("Succeeded") == ("True", "AdapterVerified")
    assert cluster.condition("Merged") == ("Unknown", "Merging")
    assert cluster.condition("Reconciling") is None
    assert not is_up_to_date(cluster.resource)
    cluster.play(running())
    assert cluster.condition("Merged") == ("Unknown", "Merging")
    usage = {name: cluster.resource["status"].get(name) for name in ("activeSeconds", "attempts", "usage")}
    cluster.play(terminated(0, MERGED))
    status = cluster.resource["status"]
    assert cluster.condition("Merged") == ("True", "ModelMerged")
    assert status["mergedModel"] == MERGED["mergedModel"]
    assert [run["reason"] for run in status["merges"]] == ["Succeeded"]
    assert {name: status.get(name) for name in usage} == usage, "it counts neither as an attempt nor as GPU time"
    assert cluster.events[-2:] == ["Succeeded", "ModelMerged"]
    assert is_up_to_date(cluster.resource)
    cluster.jobs.clear()
    cluster.settle()
    assert cluster.created.count("a-merge") == 1, "a merged job is never merged again"


def test_without_the_field_nothing_is_merged() -> None:
    cluster = after_preflight()
    cluster.play(terminated(0, SUCCEEDED))
    assert cluster.created[-1] == "a-train-1"
    assert cluster.condition("Merged") is None
    cluster.set_spec(output=OUTPUT)
    cluster.settle()
    assert cluster.created[-1] == "a-train-1", "a job that was finished by an older version is left as it is"


def test_a_merge_that_fails_is_repeated_within_the_budget_and_never_fails_the_adapter() -> None:
    cluster = merging(failurePolicy={"retries": {"onError": 1}})
    cluster.play(terminated(1, result("MergeFailed"), at=cluster.now))
    assert cluster.condition("Merged") == ("Unknown", "Retrying")
    assert cluster.requeue_after
    cluster.wait(cluster.requeue_after)
    cluster.settle()
    assert cluster.created[-2:] == ["a-merge", "a-merge-2"]
    cluster.play(terminated(1, result("MergeFailed"), at=cluster.now))
    assert cluster.condition("Merged") == ("False", "MergeFailed")
    assert "failurePolicy.retries.onError (1) is used up" in cluster.message("Merged")
    assert cluster.condition("Ready") == cluster.condition("Succeeded") == ("True", "AdapterVerified")
    assert cluster.condition("Stalled") is None
    assert cluster.resource["status"]["phase"] == "Succeeded"
    assert cluster.events[-1] == "MergeFailed"
    assert is_up_to_date(cluster.resource)
    cluster.wait(3600)
    cluster.settle()
    assert cluster.created[-1] == "a-merge-2"
    cluster.set_spec(suspend=True)
    cluster.settle()
    assert cluster.condition("Merged") == ("False", "MergeFailed"), "it would not go on"
    cluster.set_spec(suspend=False, failurePolicy={"retries": {"onError": 2}})
    cluster.settle()
    assert cluster.created[-1] == "a-merge-3", "a larger budget is another try"


@pytest.mark.parametrize(
    ("ending", "reason", "message"),
    [
        (lambda: terminated(15, result("ModelAccessDenied")), "ModelAccessDenied", "why"),
        (lambda: terminated(33, result("VerificationFailed")), "VerificationFailed", "why"),
    ],
    ids=["access", "verification"],
)
def test_what_another_merge_cannot_mend_is_not_repeated(
    ending: Callable[[], dict[str, Any]], reason: str, message: str
) -> None:
    cluster = merging()
    cluster.play(ending())
    cluster.wait(3600)
    cluster.settle()
    assert cluster.created[-1] == "a-merge"
    assert cluster.condition("Merged") == ("False", reason)
    assert cluster.message("Merged") == f"{message}. The adapter is not affected."


def test_a_merge_that_needs_more_memory_than_its_limit_says_which_field_to_raise() -> None:
    cluster = merging(failurePolicy={"retries": {"onError": 0}})
    cluster.play(terminated(137, reason="OOMKilled"))
    assert cluster.condition("Merged") == ("False", "HostOutOfMemory")
    assert "spec.resources.merge.limits.memory" in cluster.message("Merged")


def test_a_merge_that_the_cluster_took_away_is_repeated_at_once() -> None:
    cluster = merging()
    cluster.play(terminated(143, deleted=True))
    assert cluster.created[-1] == "a-merge-2"


def test_a_suspended_job_merges_when_it_is_resumed() -> None:
    cluster = merging()
    cluster.play(running())
    cluster.set_spec(suspend=True)
    cluster.settle()
    assert "a-merge" not in cluster.jobs
    assert "a-train-1" in cluster.jobs, "for its log"
    assert cluster.condition("Merged") == ("Unknown", "Suspended")
    cluster.stop_pods(terminated(143, deleted=True))
    cluster.settle()
    assert [run["reason"] for run in cluster.resource["status"]["merges"]] == ["Suspended"]
    assert cluster.condition("Ready") == ("True", "AdapterVerified")
    cluster.set_spec(suspend=False)
    cluster.settle()
    assert cluster.created[-1] == "a-merge-2"
    cluster.play(terminated(0, MERGED))
    assert cluster.condition("Merged") == ("True", "ModelMerged")


@pytest.mark.parametrize("dies_at", range(4))
def test_an_operator_that_is_killed_before_any_status_write_comes_to_the_same_end(dies_at: int) -> None:
    cluster = after_preflight(output=OUTPUT)
    steps: list[Callable[[], None]] = [
        lambda: cluster.set_pod(terminated(0, SUCCEEDED)),
        lambda: None,
        lambda: cluster.set_pod(running()),
        lambda: cluster.set_pod(terminated(0, MERGED)),
    ]
    for number, step in enumerate(steps):
        step()
        cluster.apply(cluster.plan(), only_children=number == dies_at)
        if number == dies_at:
            cluster.apply(cluster.plan())
    cluster.settle()
    assert cluster.created[1:] == ["a-train-1", "a-merge"]
    assert cluster.condition("Merged") == ("True", "ModelMerged")


def test_the_time_to_live_begins_when_the_model_is_merged() -> None:
    cluster = merging(ttlSecondsAfterFinished=60)
    cluster.wait(600)
    cluster.settle()
    assert not cluster.is_deleted
    cluster.play(terminated(0, MERGED))
    assert cluster.requeue_after == 60
    cluster.wait(60)
    cluster.settle()
    assert cluster.is_deleted


def test_a_deletion_with_its_output_waits_for_the_merge_to_end() -> None:
    cluster = after_preflight(output={**OUTPUT, "deletionPolicy": "Delete"})
    cluster.play(terminated(0, SUCCEEDED))
    cluster.play(running())
    cluster.delete()
    cluster.settle()
    assert "a-merge" not in cluster.jobs
    assert "a-clean-up" not in cluster.jobs
    cluster.stop_pods(terminated(143, deleted=True))
    cluster.settle()
    assert cluster.created[-1] == "a-clean-up"
    assert all(has_ended(item, item["metadata"]["labels"][ROLE_LABEL]) for item in cluster.pods.values())


def test_a_pod_that_does_not_start_in_time_counts_as_a_failed_merge() -> None:
    cluster = merging(pendingDeadlineSeconds=60, failurePolicy={"retries": {"onError": 0}})
    cluster.play(pod(conditions=[{"type": "PodScheduled", "status": "False", "message": "0/3 nodes"}]))
    assert cluster.condition("Merged") == ("Unknown", "Unschedulable")
    cluster.wait(60)
    cluster.settle()
    assert cluster.condition("Merged") == ("False", "Unschedulable")
    assert "a-merge" not in cluster.jobs


def test_a_merge_that_the_api_server_refuses_or_delays_says_so_and_leaves_the_adapter_alone() -> None:
    cluster = merging()
    refused = FakeCluster()
    refused.resource = {**cluster.resource, "status": plan_refused(cluster.observed(), cluster.now, "why").status}
    assert refused.condition("Merged") == ("False", "SpecInvalid")
    blocked = FakeCluster()
    blocked.resource = {**cluster.resource, "status": plan_blocked(cluster.observed(), cluster.now, "quota").status}
    assert blocked.condition("Merged") == ("Unknown", "Pending")
    for either in (refused, blocked):
        assert either.condition("Ready") == either.condition("Succeeded") == ("True", "AdapterVerified")
        assert either.condition("Accepted") == ("True", "Accepted")


def test_what_the_administrator_no_longer_allows_makes_no_pod() -> None:
    cluster = after_preflight(output=OUTPUT, model={**SPEC["model"], "trustRemoteCode": False})
    cluster.set_pod(terminated(0, SUCCEEDED))
    cluster.apply(cluster.plan())
    cluster.set_spec(model={**SPEC["model"], "trustRemoteCode": True})
    cluster.settle()
    assert cluster.created[-1] == "a-train-1"
    assert cluster.condition("Merged") == ("False", "SpecInvalid")
    assert "trainer.allowRemoteCode" in cluster.message("Merged")


def test_the_pod_has_no_gpu_only_model_and_output_and_the_trainers_image() -> None:
    spec = {
        "dataset": {"uri": "configmap://texts/hamlet.txt", "secretRef": {"name": "data"}},
        "model": {"uri": "pvc://models/smollm", "secretRef": {"name": "hub"}},
        "podTemplate": {"image": "my/trainer:2", "nodeSelector": {"gpu": "a100"}},
    }
    merge_container = container(spec)
    assert "nodeSelector" not in merge_container["pod"]
    assert not [name for name in merge_container["resources"]["limits"] if "/" in name]
    assert merge_container["image"] == "my/trainer:2"
    assert merge_container["command"][-1] == "merge"
    volumes = [
        volume for volume in merge_container["pod"]["volumes"] if "emptyDir" not in volume and "projected" not in volume
    ]
    assert [volume.get("secret", {}).get("secretName") for volume in volumes] == ["hub", "s3-credentials", None]
    assert volumes[-1]["persistentVolumeClaim"]["claimName"] == "models"
    own_image = {**spec, "podTemplate": {"image": "my/trainer:2", "command": ["my-trainer"]}}
    assert container(own_image)["image"] == SETTINGS.trainer_image, "another trainer's image may lack ours"


@pytest.mark.parametrize(
    ("spec", "parameters", "gib"),
    [
        ({}, 70_000_000_000, 146),
        ({"resources": {"gpusPerNode": 0}}, 8_000_000_000, 36),
        ({"training": {"maxSteps": 1, "precision": "fp32"}}, 8_000_000_000, 36),
        ({}, 130_000_000, 1.5),
        ({"resources": {"merge": {"requests": {"memory": "9Gi"}}}}, 70_000_000_000, 9),
        ({"resources": {"merge": {"limits": {"memory": "1Gi"}}}}, 70_000_000_000, 1),
    ],
    ids=["70B on a GPU", "8B on a CPU", "8B in fp32", "small", "own request", "own limit"],
)
def test_the_memory_is_what_the_estimate_says_or_the_user(spec: dict[str, Any], parameters: int, gib: float) -> None:
    resources = container(spec, trainableParameters=10, totalParameters=parameters)["resources"]
    requests, limits = (parse_quantity(resources[kind]["memory"]) for kind in ("requests", "limits"))
    assert float(requests) / GIB == pytest.approx(gib, rel=0.05)
    assert limits >= requests


@pytest.mark.cluster
def test_the_api_server_takes_the_merges_job(api: Api) -> None:
    resource = api.create_job("merged", output=OUTPUT, resources={"merge": {"limits": {"memory": "8Gi"}}})
    job = FineTuneJob.of(resource)
    built = build_merge_job(resource, job, 1, ResolvedModel("c0ffee"), SETTINGS, 10**9)
    stored = api.plain(api.batch.create_namespaced_job(api.namespace, built, dry_run="All", field_validation="Strict"))
    assert covers(stored["spec"], built["spec"])
