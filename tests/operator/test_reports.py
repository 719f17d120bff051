"""The report endpoint with tokens of a real API server: who may report, and for whom."""

import json
import time
from typing import Any

import pytest

from finetune_api.messages import AGENT_PATH, PROGRESS_PATH
from tools.testing.fake_kubelet import Kubelet, good_run
from tools.testing.kubernetes_api import GROUP, Api
from tools.testing.operator_messages import PREFLIGHT_PASSED, PROGRESS, SUCCEEDED
from tools.testing.operator_process import Operator
from tools.testing.waiting import until

pytestmark = pytest.mark.cluster
CHECKPOINT = {"uri": "s3://adapters/checkpoints/step-3", "step": 3, "savedAt": "2026-01-01T12:00:00Z"}
AGENT = {"engineReady": True, "ready": True, "adapters": []}


def report(step: int, **more: Any) -> dict[str, Any]:
    return {"progress": {**PROGRESS, "step": step, "percent": step * 10}, **more}


def with_progress(**fields: Any) -> dict[str, Any]:
    return {"progress": {**PROGRESS, **fields}}


@pytest.fixture(scope="module")
def pods(api: Api, operator: Operator) -> dict[str, dict[str, Any]]:
    """Return a preflight's pod and a trainer's pod that runs."""
    api.create_job("reports")
    preflight = api.run_pod("reports-preflight")
    api.end_pod("reports-preflight", 0, PREFLIGHT_PASSED)
    trainer = api.run_pod("reports-train-1")
    api.await_condition("reports", "Running", "True")
    return {"preflight": preflight, "trainer": trainer}


@pytest.fixture
def token(api: Api, pods: dict[str, dict[str, Any]]) -> str:
    """Return the trainer's token."""
    return api.pod_token(pods["trainer"])


def step_of(api: Api, name: str = "reports") -> int | None:
    step: int | None = api.finetune_job(name)["status"].get("progress", {}).get("step")
    return step


def test_progress_reaches_status(api: Api, operator: Operator, token: str) -> None:
    body = report(3, checkpoint=CHECKPOINT, resumedFromStep=2, aFieldOfANewerTrainer=1)
    assert operator.post(PROGRESS_PATH, body, token) == (200, {"accepted": True, "message": ""})
    status = until("step 3", lambda: api.finetune_job("reports")["status"] if step_of(api) == 3 else None)
    assert status["progress"]["percent"] == 30
    assert status["checkpoint"]["step"] == 3
    assert status["attempts"][0]["resumedFromStep"] == 2


def test_reports_in_quick_succession_are_few_writes_and_the_newest_wins(
    api: Api, operator: Operator, token: str
) -> None:
    def writes() -> float:
        return operator.metric("finetune_operator_kube_requests_total", verb="patch_status")

    before = writes()
    begin = time.monotonic()
    for number in range(200):
        assert operator.post(PROGRESS_PATH, report(4 + number % 2), token)[0] == 200
    assert operator.post(PROGRESS_PATH, report(9), token)[0] == 200
    until("the newest step", lambda: step_of(api) == 9)
    assert writes() - before <= 2 + (time.monotonic() - begin) / 0.1, "one write per interval at most"


def test_an_operator_of_chosen_namespaces_asks_for_keys_once_and_for_no_review(
    api: Api, operator: Operator, token: str
) -> None:
    def asked() -> tuple[float, float]:
        calls = "finetune_operator_kube_requests_total"
        return operator.metric(calls, plural="discovery"), operator.metric(calls, verb="review")

    operator.post(PROGRESS_PATH, report(9), token)
    before = asked()
    for _ in range(5):
        assert operator.post(PROGRESS_PATH, report(9), token)[0] == 200
        assert operator.post(PROGRESS_PATH, report(9), "nonsense")[0] == 401
    assert asked() == before == (before[0], 0)


def test_a_token_with_another_signature_is_refused(operator: Operator, token: str) -> None:
    head, claims, signature = token.split(".")
    forged = ".".join([head, claims, signature[:10] + ("A" if signature[10] != "A" else "B") + signature[11:]])
    assert operator.post(PROGRESS_PATH, report(1), forged)[0] == 401


@pytest.mark.parametrize("token", [None, "nonsense", "a.b.c"])
def test_without_a_valid_token_nothing_is_believed(operator: Operator, token: str | None) -> None:
    status, answer = operator.post(PROGRESS_PATH, report(1), token)
    assert status == 401
    assert answer["accepted"] is False
    assert "projected token" in answer["message"]


def test_a_token_for_another_audience_is_refused(api: Api, operator: Operator, pods: dict[str, dict[str, Any]]) -> None:
    status, answer = operator.post(PROGRESS_PATH, report(1), api.pod_token(pods["trainer"], "somebody-else"))
    assert status == 401
    assert GROUP in answer["message"]


def test_a_token_that_is_not_bound_to_a_pod_is_refused(api: Api, operator: Operator) -> None:
    request = {"spec": {"audiences": [GROUP]}}
    answer = api.core.create_namespaced_service_account_token("default", api.namespace, request)
    status, reply = operator.post(PROGRESS_PATH, report(1), answer.status.token)
    assert status == 401
    assert "not bound to a pod" in reply["message"]


def test_a_pod_that_is_no_trainer_cannot_report_progress(
    api: Api, operator: Operator, pods: dict[str, dict[str, Any]]
) -> None:
    status, answer = operator.post(PROGRESS_PATH, report(1), api.pod_token(pods["preflight"]))
    assert status == 403
    assert "is not a trainer pod" in answer["message"]


def test_a_pod_with_a_trainers_labels_but_another_owner_is_not_believed(
    api: Api, operator: Operator, pods: dict[str, dict[str, Any]]
) -> None:
    meta = pods["trainer"]["metadata"]
    trainer_labels = {name: value for name, value in meta["labels"].items() if name.startswith(GROUP)}
    forged = {
        "metadata": {"name": "forged", "labels": trainer_labels, "annotations": meta["annotations"]},
        "spec": {"containers": [{"name": "x", "image": "x"}]},
    }
    pod = api.plain(api.core.create_namespaced_pod(api.namespace, forged))
    before = step_of(api)
    status, answer = operator.post(PROGRESS_PATH, report(1), api.pod_token(pod))
    assert status == 403
    assert "is not a trainer pod" in answer["message"]
    assert step_of(api) == before


def test_a_pod_that_is_not_ours_at_all_is_refused(api: Api, operator: Operator) -> None:
    body = {"metadata": {"name": "stranger"}, "spec": {"containers": [{"name": "x", "image": "x"}]}}
    pod = api.plain(api.core.create_namespaced_pod(api.namespace, body))
    for path, content in ((PROGRESS_PATH, report(1)), (AGENT_PATH, AGENT)):
        status, answer = operator.post(path, content, api.pod_token(pod))
        assert status == 403
        assert "is not one of this operator's" in answer["message"]


@pytest.mark.parametrize(
    ("name", "body", "status", "text"),
    [
        ("no JSON", b"{", 422, "not a ProgressReport"),
        ("another message", json.dumps(AGENT).encode(), 422, "progress: Field required"),
        ("a wrong value", json.dumps(report(-1)).encode(), 422, "progress.step"),
        ("NaN", json.dumps(with_progress(loss=float("nan"))).encode(), 422, "progress.loss cannot be stored"),
        ("an infinity", json.dumps(with_progress(evalLoss=float("inf"))).encode(), 422, "progress.evalLoss cannot"),
        ("more than 64 bits", json.dumps(with_progress(etaSeconds=2**63)).encode(), 422, "progress.etaSeconds cannot"),
        ("a wrong time", json.dumps(with_progress(updatedAt="yesterday")).encode(), 422, "'yesterday' is no time"),
        ("too large", b" " * 300_000, 413, "larger than 262144 bytes"),
    ],
)
def test_what_is_no_report_is_refused(
    operator: Operator, token: str, name: str, body: bytes, status: int, text: str
) -> None:
    code, answer = operator.post(PROGRESS_PATH, body, token)
    assert code == status, name
    assert text in answer["message"]


def test_an_agents_report_is_taken_from_its_pod(api: Api, operator: Operator) -> None:
    labels = {"finetune-operator.io/role": "agent"}
    body = {"metadata": {"name": "serving", "labels": labels}, "spec": {"containers": [{"name": "x", "image": "x"}]}}
    pod = api.plain(api.core.create_namespaced_pod(api.namespace, body))
    assert operator.post(AGENT_PATH, AGENT, api.pod_token(pod)) == (200, {"accepted": True, "message": ""})
    assert operator.metric("finetune_operator_reports_total", path=AGENT_PATH, status="200") >= 1


def test_the_final_status_does_not_wait_for_the_write_budget(api: Api, operator: Operator, token: str) -> None:
    operator.post(PROGRESS_PATH, report(9), token)
    api.end_pod("reports-train-1", 0, SUCCEEDED)
    status = api.await_condition("reports", "Ready", "True")
    assert status["progress"]["step"] == 10
    assert operator.post(PROGRESS_PATH, report(5), token)[0] == 200
    with Kubelet(api, "another", good_run):
        api.create_job("another")
        api.await_condition("another", "Ready", "True")
    assert step_of(api) == 10, "a late report does not touch a finished job"


def test_probes_and_metrics(operator: Operator) -> None:
    assert operator.get("/healthz") == (200, "ok")
    assert operator.get("/readyz") == (200, "ok")
    assert operator.metric("finetune_operator_reconciles_total", kind="FineTuneJob", result="ok") > 0
    assert operator.metric("finetune_operator_reconciles_total", result="bug") == 0
    assert operator.get("/nowhere")[0] == 404
