"""Canaries by the operator against a real API server; the operator is killed at each step."""

from pathlib import Path

import pytest

from tests.adapterdeployment.groups import V1, V2
from tests.adapterdeployment.serving import ADP, ServingNamespace
from tests.adapterdeployment.test_analysis_requests import Hook, running_prometheus
from tests.adapterdeployment.test_release_on_the_server import report_all, run_finetune, serve_first, status
from tools.testing.http_server import serving as serving_hook
from tools.testing.kubernetes_api import Object
from tools.testing.waiting import until

pytestmark = [pytest.mark.cluster]

PREFIX = "bot.finetune-operator.io"
STEPS = [{"pods": 1}, {"percent": 50, "pauseSeconds": 3}]


def select(serving: ServingNamespace, label: str) -> list[str]:
    """Return the names of the pods that a Service with this label in its selector has."""
    names = serving.kubectl("get", "pods", "-l", f"{PREFIX}/{label}", "-o", "name").split()
    return sorted(name.removeprefix("pod/") for name in names)


def await_pods(serving: ServingNamespace, names: list[str]) -> None:
    until(f"{len(names)} pods are told", lambda: serving.desired()[0].get("pods") == names)


def restart(serving: ServingNamespace, pods: list[Object], digests: list[str]) -> None:
    """Kill the operator and start it; each agent reports again what its pod serves."""
    serving.operator.kill()
    serving.operator.start()
    for pod, digest in zip(pods, digests, strict=True):
        report_all(serving, [pod], digest)
    until("a pass", lambda: serving.operator.metric("finetune_operator_reconciles_total", kind="ServingGroup") >= 1)


def test_a_canary_survives_the_operator_at_each_step_and_labels_its_pods(serving: ServingNamespace) -> None:
    pods = serve_first(serving, 3, strategy={"canary": {"steps": STEPS}})
    names = [str(pod["metadata"]["name"]) for pod in pods]
    until("all pods are in both Services", lambda: select(serving, "stable") == names == select(serving, "canary"))
    serving.apply_adapter("bot", V2, strategy={"canary": {"steps": STEPS}})
    await_pods(serving, names[:1])
    restart(serving, pods, [V1, V1, V1])
    assert "waits for nobody" in run_finetune(serving, "resume", "bot")
    report_all(serving, pods[:1], V2)
    message = serving.await_condition("bot", "Suspended", "True", "CanaryPaused")
    assert "step 1 of 2 (1 pod)" in message
    assert (select(serving, "canary"), select(serving, "stable")) == (names[:1], names[1:])
    assert select(serving, f"version={V2[7:19]}") == names[:1]
    restart(serving, pods, [V2, V1, V1])
    assert serving.desired()[0]["pods"] == names[:1]
    shown = run_finetune(serving, "status", "bot")
    assert "CanaryPaused" in shown
    assert f"Canary of {V2[:19]}" in shown
    assert "step 1 of 2, pods: 1" in shown

    serving.operator.kill()
    assert "goes on after step 1" in run_finetune(serving, "resume", "bot")
    serving.operator.start()
    await_pods(serving, names[:2])
    restart(serving, pods, [V2, V1, V1])
    report_all(serving, pods[:2], V2)
    until("the pause", lambda: "the next step begins at" in serving.conditions("bot")["Ready"][2])
    assert serving.desired()[0]["pods"] == names[:2]
    restart(serving, pods, [V2, V2, V1])
    await_pods(serving, names)
    until("all pods are in both Services", lambda: select(serving, "stable") == names == select(serving, "canary"))
    restart(serving, pods, [V2, V2, V1])
    report_all(serving, pods, V2)
    serving.await_condition("bot", "Ready", "True", "Serving")
    final = status(serving)
    assert "canary" not in final
    evidence = final["history"][0]["evidence"]
    assert evidence[:2] == ["step 1 of 2: a person let it go on", "step 2 of 2: 2 pods served it for 3 s"]
    assert "no canary is going on" in run_finetune(serving, "promote", "bot")
    assert "no roll-out is going on" in run_finetune(serving, "abort", "bot")


def test_a_canary_is_aborted_and_promoted_by_a_person(serving: ServingNamespace) -> None:
    pods = serve_first(serving, strategy={"canary": {"steps": STEPS}})
    names = [str(pod["metadata"]["name"]) for pod in pods]
    serving.apply_adapter("bot", V2, strategy={"canary": {"steps": STEPS}})
    await_pods(serving, names[:1])
    report_all(serving, pods[:1], V2)
    serving.await_condition("bot", "Suspended", "True", "CanaryPaused")
    assert "goes back from" in run_finetune(serving, "abort", "bot")
    until("the pods are told", lambda: serving.desired()[0]["version"]["digest"] == V1)
    report_all(serving, pods, V1)
    serving.await_condition("bot", "Stalled", "True", "RolledBack")
    assert "canary" not in status(serving)
    assert serving.get(ADP, "bot")["spec"]["adapter"]["digest"] == V2

    run_finetune(serving, "rollback", "bot", "--undo")
    await_pods(serving, names[:1])
    assert "without the remaining steps" in run_finetune(serving, "promote", "bot")
    report_all(serving, pods[:1], V2)
    await_pods(serving, names)
    report_all(serving, pods, V2)
    serving.await_condition("bot", "Ready", "True", "Serving")
    assert status(serving)["history"][0]["evidence"][0] == "a person promoted it at step 1 of 2"


def test_analyses_decide_and_a_bad_version_goes_back_by_itself(serving: ServingNamespace, tmp_path: Path) -> None:
    Hook.requests.clear()
    Hook.hanging.clear()
    with running_prometheus(tmp_path) as prometheus, serving_hook(Hook) as hook:
        number = {"url": prometheus, "query": "avg(error_ratio)", "max": 0.5}
        steps = [
            {"pods": 1, "pauseSeconds": 1, "analysis": {"prometheus": number}},
            {"percent": 100, "analysis": {"webhook": {"url": f"{hook}/500"}}},
        ]
        pods = serve_first(serving)
        names = [str(pod["metadata"]["name"]) for pod in pods]
        serving.apply_adapter("bot", V2, strategy={"canary": {"steps": steps}})
        message = serving.await_condition("bot", "Accepted", "False", "AnalysisNotAllowed")
        assert "analysis.allowedUrls" in message
        assert serving.desired()[0]["version"]["digest"] == V1
        serving.operator.settings["FINETUNE_OPERATOR_ANALYSIS_URLS"] = f"{prometheus},{hook}"
        restart(serving, pods, [V1, V1])
        await_pods(serving, names[:1])
        report_all(serving, pods[:1], V2)
        await_pods(serving, names)
        report_all(serving, pods[1:], V2)
        message = serving.await_condition("bot", "Stalled", "True", "RolledBack")
        assert "canary step 2 of 2 (2 pods)" in message
        assert "the webhook answered 500: too slow" in message
        until("the pods are told", lambda: serving.desired()[0]["version"]["digest"] == V1)
        new = status(serving)["history"][0]
        assert (new["event"], new["reason"]) == ("RolledBack", "AnalysisFailed")
        assert new["evidence"] == ["step 1 of 2: 1 pod served it for 1 s; Prometheus: 0.26 is within max 0.5"]
        assert [path for _, path, *_ in Hook.requests] == ["/500"]
        assert "AnalysisFailed" in run_finetune(serving, "status", "bot")

        report_all(serving, pods, V1)
        steps[0]["analysis"] = {"webhook": {"url": f"{hook}/hang"}}
        serving.apply_adapter("bot", V2, strategy={"canary": {"steps": steps[:1]}})
        await_pods(serving, names[:1])
        report_all(serving, pods[:1], V2)
        until("the webhook is asked", lambda: "/hang" in [path for _, path, *_ in Hook.requests])
        serving.apply_adapter("other", V1)
        until("a pass is not held up", lambda: len(serving.desired()) == 2, within=8)
        restart(serving, pods, [V2, V1])
        until("it is asked again", lambda: [path for _, path, *_ in Hook.requests].count("/hang") >= 2)
        Hook.hanging.set()
        message = serving.await_condition("bot", "Suspended", "True", "AnalysisInconclusive")
        assert "did not answer" in message
        requests_before = len(Hook.requests)
        assert "makes the analysis" in run_finetune(serving, "resume", "bot", "--retry")
        until("it is asked again", lambda: len(Hook.requests) > requests_before)
        assert serving.desired()[0]["pods"] == names[:1]
