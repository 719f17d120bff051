"""A job takes the result of another one's preflight that checked the same, and of no other."""

from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest

from finetune_operator import cache as cache_module
from finetune_operator.cache import Cache
from finetune_operator.kube.kinds import DIGEST_LABEL, FINETUNE_JOB, JOB, JOB_LABEL, POD, ROLE_LABEL
from finetune_operator.reconcile.finetunejob.gather import find_jobs_with_same_checks
from finetune_operator.reconcile.finetunejob.model import Observed, Plan
from finetune_operator.reconcile.finetunejob.plan import make_plan
from finetune_operator.resources.preflight_digest import compute_preflight_digest
from finetune_operator.settings import Settings
from tests.operator.fake_cluster import NOW, SETTINGS, FakeCluster, finetune_job, terminated
from tests.operator.lives import after_preflight, trainer
from tools.testing.operator_messages import PREFLIGHT_PASSED, SPEC

ENDED = {"kind": "PreflightResult", "problems": [{"reason": "DatasetInvalid", "field": "x", "message": "y"}]}
FASTER = {**SPEC, "training": {"learningRate": 0.5, "seed": 7}, "checkpoint": {"keep": 9}, "activeDeadlineSeconds": 60}


def plan_second(
    first: FakeCluster, spec: dict[str, Any], settings: Settings = SETTINGS, minutes: float = 1, namespace: str = "ns"
) -> Plan:
    """Return the first plan for FineTuneJob b, some minutes after FineTuneJob a came as far as this."""
    cache = Cache()
    version = {"resourceVersion": "1"}
    cache.put(FINETUNE_JOB, first.resource)
    for job in first.jobs.values():
        cache.put(JOB, {**job, "metadata": {**job["metadata"], **version}})
    for name, pod in first.pods.items():
        owner = {"uid": name, "controller": True}
        labels = pod["metadata"]["labels"] | {JOB_LABEL: "a"}
        meta = {"namespace": "ns", "name": name, "uid": f"pod of {name}", "labels": labels, "ownerReferences": [owner]}
        cache.put(POD, {**pod, "metadata": meta | version})
    second = finetune_job(spec)
    second["metadata"] |= {"name": "b", "uid": "22222222", "namespace": namespace}
    cache.put(FINETUNE_JOB, second)
    observed = Observed(second, jobs_with_same_checks=find_jobs_with_same_checks(second, cache, settings))
    return make_plan(observed, NOW + timedelta(minutes=minutes), settings)


def created(plan: Plan) -> str:
    assert plan.create is not None
    return str(plan.create["metadata"]["name"])


def test_a_changed_learning_rate_does_not_repeat_the_preflight() -> None:
    plan = plan_second(after_preflight(training={}, checkpoint={}), FASTER)
    assert created(plan) == "b-train-1"
    assert plan.status["estimate"] == PREFLIGHT_PASSED["estimate"]
    assert plan.status["modelRevision"] == PREFLIGHT_PASSED["modelRevision"]
    (message,) = [item["message"] for item in plan.status["conditions"] if item["type"] == "PreflightPassed"]
    assert message.endswith(
        "Taken from the preflight of FineTuneJob a, which checked the same until 2026-01-01T12:00:00Z."
    )
    assert [event.note for event in plan.events if event.reason == "PreflightPassed"] == [message]


@pytest.mark.parametrize(
    "spec",
    [
        {**SPEC, "dataset": {"uri": "configmap://texts/other.txt"}},
        {**SPEC, "model": {**SPEC["model"], "uri": "s3://models/other"}},
        {**SPEC, "method": {"lora": {"rank": 9}}},
        {**SPEC, "training": {"maxLength": 4096}},
        {**SPEC, "output": {**SPEC["output"], "secretRef": {"name": "other"}}},
        {**SPEC, "podTemplate": {"serviceAccountName": "default"}},
    ],
    ids=["data", "model", "method", "length", "secret", "identity"],
)
def test_what_a_preflight_reads_repeats_it(spec: dict[str, Any]) -> None:
    assert created(plan_second(after_preflight(), spec)) == "b-preflight"


@pytest.mark.parametrize(
    "more",
    [
        {"output": {**SPEC["output"], "s3": {"bucket": "adapters", "prefix": "one/place"}}},
        {"model": {**SPEC["model"], "cache": {"persistentVolumeClaim": {"claimName": "models"}}}},
    ],
    ids=["the prefix may hold another job's adapter", "the cache may have lost the model"],
)
def test_a_preflight_that_another_job_may_have_outdated_is_repeated(more: dict[str, Any]) -> None:
    assert created(plan_second(after_preflight(**more), {**SPEC, **more})) == "b-preflight"


def test_it_is_believed_for_an_hour_or_as_long_as_the_administrator_says() -> None:
    assert created(plan_second(after_preflight(), SPEC, minutes=59)) == "b-train-1"
    assert created(plan_second(after_preflight(), SPEC, minutes=60)) == "b-preflight"
    never = replace(SETTINGS, preflight_reuse_seconds=0.0)
    assert created(plan_second(after_preflight(), SPEC, never, minutes=0)) == "b-preflight"


def test_another_image_or_another_namespace_repeats_it() -> None:
    newer = replace(SETTINGS, operator_image="operator:2")
    assert created(plan_second(after_preflight(), SPEC, newer)) == "b-preflight"
    assert created(plan_second(after_preflight(), SPEC, namespace="other")) == "b-preflight"


def fail_preflight(cluster: FakeCluster) -> None:
    cluster.play(terminated(11, ENDED))


def still_run(cluster: FakeCluster) -> None:
    pass


def lose_result(cluster: FakeCluster) -> None:
    cluster.play(terminated(0, PREFLIGHT_PASSED))
    cluster.pods.clear()


def find_fault_in_training(cluster: FakeCluster) -> None:
    cluster.play(terminated(0, PREFLIGHT_PASSED))
    cluster.wait(30)
    cluster.play(terminated(11, trainer("DatasetInvalid")))


@pytest.mark.parametrize("end", [fail_preflight, still_run, lose_result, find_fault_in_training])
def test_only_a_good_result_that_nothing_speaks_against_is_believed(end: Callable[[FakeCluster], None]) -> None:
    first = FakeCluster(SPEC)
    first.settle()
    end(first)
    assert created(plan_second(first, SPEC)) == "b-preflight"


def test_a_failure_that_is_no_fault_of_the_user_does_not_matter() -> None:
    first = after_preflight(failurePolicy={"retries": {"onError": 0}})
    first.play(terminated(1, trainer("TrainerError")))
    assert first.condition("Succeeded") == ("False", "TrainerError")
    assert created(plan_second(first, SPEC)) == "b-train-1"


def test_a_new_job_among_many_with_the_same_checks_looks_at_a_few(monkeypatch: pytest.MonkeyPatch) -> None:
    cache, spec = Cache(), finetune_job(SPEC)["spec"]
    digest = compute_preflight_digest(spec, SETTINGS)
    for number in range(300):
        owner = {"uid": f"uid-{number}", "controller": True}
        resource = finetune_job(SPEC)
        resource["metadata"] |= {"name": f"job-{number}", "uid": owner["uid"], "resourceVersion": str(number)}
        cache.put(FINETUNE_JOB, resource)
        for role in ("preflight", "trainer"):
            meta = {
                "name": f"job-{number}-{role}",
                "namespace": "ns",
                "uid": f"{role}-{number}",
                "resourceVersion": str(1000 + number),
                "annotations": {JOB_LABEL: f"job-{number}"},
                "labels": {JOB_LABEL: f"job-{number}", ROLE_LABEL: role, DIGEST_LABEL: digest},
                "ownerReferences": [owner],
            }
            cache.put(JOB, {"metadata": meta, "spec": {}})
    unpacked: list[Any] = []
    genuine = cache_module._unpack

    def unpack(entry: Any) -> Any:
        unpacked.append(entry)
        return genuine(entry)

    monkeypatch.setattr(cache_module, "_unpack", unpack)
    new = finetune_job(SPEC)
    new["metadata"] |= {"name": "new", "uid": "new"}
    others = find_jobs_with_same_checks(new, cache, SETTINGS)
    assert [other.resource["metadata"]["name"] for other in others] == [f"job-{n}" for n in range(299, 291, -1)]
    assert len(unpacked) == 16, "a Job and a FineTuneJob of each"
    never = replace(SETTINGS, preflight_reuse_seconds=0.0)
    assert find_jobs_with_same_checks(new, cache, never) == ()
