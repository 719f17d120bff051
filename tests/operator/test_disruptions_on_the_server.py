"""Pods of a trainer that go away, on a real API server: its Job controller replaces them, or the operator does."""

from typing import Any

import pytest

from devcluster.cluster import Cluster
from tools.testing.kubernetes_api import Api
from tools.testing.operator_messages import PREFLIGHT_PASSED, SUCCEEDED
from tools.testing.operator_process import Operator
from tools.testing.waiting import until

pytestmark = pytest.mark.cluster
PREEMPTED = {"kind": "TrainerResult", "reason": "Preempted", "message": "asked to stop"}


def train(api: Api, name: str, **spec: Any) -> None:
    """Create a FineTuneJob, and wait until its trainer runs."""
    api.create_job(name, **spec)
    api.end_pod(f"{name}-preflight", 0, PREFLIGHT_PASSED)
    api.run_pod(f"{name}-train-1")
    api.await_condition(name, "Running", "True")


def attempts(api: Api, name: str) -> list[dict[str, Any]]:
    entries: list[dict[str, Any]] = api.finetune_job(name)["status"].get("attempts", [])
    return entries


def reasons(api: Api, name: str) -> list[str | None]:
    return [attempt.get("reason") for attempt in attempts(api, name)]


def await_next_pod(api: Api, job: str, before: str) -> dict[str, Any]:
    """Wait for the pod that replaces another one, and until that one and those before it are gone."""

    def find_next() -> dict[str, Any] | None:
        pods = api.pods(job)
        return pods[0] if len(pods) == 1 and pods[0]["metadata"]["uid"] != before else None

    return until("the next pod alone", find_next)


@pytest.mark.chaos("pods are evicted while the operator is down")
def test_a_job_recovers_while_the_operator_is_down_and_its_story_is_told_later(api: Api, operator: Operator) -> None:
    train(api, "evicted")
    operator.kill()
    for _ in range(2):
        before = api.await_pod("evicted-train-1")["metadata"]["uid"]
        api.evict_pod("evicted-train-1", 40, PREEMPTED)
        await_next_pod(api, "evicted-train-1", before)
        api.run_pod("evicted-train-1")
    operator.start()
    until("the next attempt", lambda: reasons(api, "evicted") == ["Preempted", None])
    last = api.await_pod("evicted-train-1")["metadata"]
    until("its pod", lambda: attempts(api, "evicted")[1].get("podUid") == last["uid"])
    assert attempts(api, "evicted")[1]["podName"] == last["name"]
    api.end_pod("evicted-train-1", 0, SUCCEEDED)
    api.await_condition("evicted", "Ready", "True")
    assert reasons(api, "evicted") == ["Preempted", "Succeeded"]
    assert api.job_names("evicted") == ["evicted-preflight", "evicted-train-1"]

    def list_events() -> list[str]:
        about = [event for event in api.events() if event["regarding"]["name"] == "evicted"]
        return sorted(event["reason"] for event in about if event["reason"] != "Unschedulable")

    story = ["Accepted", "AttemptFailed", "AttemptStarted", "AttemptStarted", "PreflightPassed", "Succeeded"]
    until("its story", lambda: list_events() == story)


def test_evictions_are_attempts_of_one_job_until_their_budget_is_used_up(api: Api, operator: Operator) -> None:
    train(api, "drained", failurePolicy={"retries": {"onPreemption": 1}})
    before = api.await_pod("drained-train-1")["metadata"]["uid"]
    api.evict_pod("drained-train-1", 40, PREEMPTED)
    until("the first attempt has ended", lambda: reasons(api, "drained") == ["Preempted", None])
    await_next_pod(api, "drained-train-1", before)
    api.run_pod("drained-train-1")
    api.await_condition("drained", "Running", "True")
    assert api.job_names("drained") == ["drained-preflight", "drained-train-1"]
    api.evict_pod("drained-train-1", 40, PREEMPTED)
    api.await_condition("drained", "Stalled", "True", "Preempted")
    assert reasons(api, "drained") == ["Preempted", "Preempted"]
    until("its Job is gone", lambda: api.job_names("drained") == ["drained-preflight"])


def test_a_trainer_that_fails_while_it_is_evicted_is_not_repeated_by_its_job(api: Api, operator: Operator) -> None:
    train(api, "diverged")
    api.evict_pod("diverged-train-1", 32, {"kind": "TrainerResult", "reason": "LossDiverged", "message": "NaN"})
    api.await_condition("diverged", "Stalled", "True", "LossDiverged")
    (job,) = [job for job in api.jobs("diverged") if job["metadata"]["name"] == "diverged-train-1"]
    until(
        "the Job has failed",
        lambda: [c for c in api.jobs("diverged")[-1]["status"].get("conditions", ()) if c["type"] == "Failed"],
    )
    assert job["spec"]["podReplacementPolicy"] == "Failed"
    assert api.job_names("diverged") == ["diverged-preflight", "diverged-train-1"]


@pytest.mark.chaos("a pod on a node that does not answer is force-deleted")
def test_no_pod_follows_one_that_was_force_deleted_until_it_has_ended(api: Api, operator: Operator) -> None:
    api.create_job("forced")
    api.end_pod("forced-preflight", 0, PREFLIGHT_PASSED)
    api.bind_pod("forced-train-1", "node-d")
    pod = api.run_pod("forced-train-1")
    api.await_condition("forced", "Running", "True")
    api.core.delete_namespaced_pod(pod["metadata"]["name"], api.namespace, grace_period_seconds=0)
    api.create_job("later")
    api.await_condition("later", "Accepted", "True")  # the operator has seen what came before
    assert [item["metadata"]["uid"] for item in api.pods("forced-train-1")] == [pod["metadata"]["uid"]]
    assert api.job_names("forced") == ["forced-preflight", "forced-train-1"]
    assert reasons(api, "forced") == [None]
    api.end_pod("forced-train-1", 137, "")
    api.await_pod("forced-train-2")
    until("the reason", lambda: reasons(api, "forced") == ["Preempted", None])


@pytest.mark.chaos("the Job is edited by hand")
def test_a_job_that_somebody_edits_is_deleted_and_the_next_one_waits_for_its_pod(api: Api, operator: Operator) -> None:
    train(api, "edited")
    api.batch.patch_namespaced_job("edited-train-1", api.namespace, {"spec": {"parallelism": 2, "backoffLimit": 6}})
    (event,) = until("its event", lambda: [event for event in api.events() if event["reason"] == "JobEdited"])
    assert "edited-train-1 (spec.parallelism: 2, spec.backoffLimit: 6)" in event["note"]
    api.run_pod("edited-train-2")
    assert api.pods("edited-train-1") == []
    until("the reason", lambda: reasons(api, "edited") == ["Preempted", None])


@pytest.mark.chaos("the Job is deleted by hand between two pods, while the operator is down")
def test_a_job_that_is_deleted_while_the_operator_is_down_is_followed_by_one(
    cluster: Cluster, api: Api, operator: Operator
) -> None:
    train(api, "bereft")
    operator.kill()
    api.evict_pod("bereft-train-1", 40, PREEMPTED)
    cluster.kubectl("--namespace", api.namespace, "delete", "job", "bereft-train-1", "--cascade=foreground")
    operator.start()
    api.run_pod("bereft-train-2")
    until("the next attempt", lambda: reasons(api, "bereft") == ["Preempted", None])
    api.end_pod("bereft-train-2", 0, SUCCEEDED)
    api.await_condition("bereft", "Ready", "True")
    assert api.job_names("bereft") == ["bereft-preflight", "bereft-train-2"]
