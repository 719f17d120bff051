"""Roll-outs as releases, by the operator against a real API server; the agents' reports are real HTTP reports."""

import json
import time
from collections.abc import Sequence
from typing import Any

import pytest

from tests.adapterdeployment.groups import V1, V2, V3, uri
from tests.adapterdeployment.serving import ADP, ServingNamespace, manifest, says
from tests.cli.run import finetune
from tools.testing.kubernetes_api import Object
from tools.testing.waiting import until

pytestmark = [pytest.mark.cluster]


def build_source(digest: str) -> Object:
    """Return the spec.adapter that asks for a digest."""
    return {"uri": uri(digest), "digest": digest, "s3": {"endpoint": "http://s3:9000"}, "secretRef": {"name": "keys"}}


def serve_first(serving: ServingNamespace, replicas: int = 2, **spec: Any) -> list[Object]:
    """Let the pods serve the first version; return them by name."""
    serving.kubectl("apply", "-f", "-", stdin=manifest(replicas))
    serving.apply_adapter("bot", **spec)
    pods = sorted(serving.pods(), key=lambda pod: str(pod["metadata"]["name"]))
    report_all(serving, pods, V1)
    serving.await_condition("bot", "Ready", "True", "Serving")
    return pods


def report_all(serving: ServingNamespace, pods: Sequence[Object], digest: str) -> None:
    for pod in pods:
        serving.report(pod, says("bot", digest, digest, proof="98% of the trained effect is there"))


def roll_out(serving: ServingNamespace, pods: Sequence[Object], digest: str) -> None:
    """Let the pods take a version one after another, as the operator tells them."""
    for number, pod in enumerate(pods, start=1):
        names = [item["metadata"]["name"] for item in pods[:number]]
        until(f"{number} pods move", lambda names=names: serving.desired()[0].get("pods") == names)  # type: ignore[misc]
        report_all(serving, [pod], digest)
    until("it is active", lambda: status(serving).get("active", {}).get("digest") == digest)


def status(serving: ServingNamespace) -> Object:
    value: Object = serving.get(ADP, "bot").get("status", {})
    return value


def run_finetune(serving: ServingNamespace, *arguments: str) -> str:
    """Run the command line; return what it prints, on standard error if it fails."""
    ran = finetune(
        *arguments, "--namespace", serving.namespace, environment={"KUBECONFIG": str(serving.cluster.kubeconfig)}
    )
    return ran.err if ran.code else ran.out


def test_the_history_says_what_was_served_and_by_which_proofs(serving: ServingNamespace) -> None:
    pods = serve_first(serving)
    serving.apply_adapter("bot", V2)
    roll_out(serving, pods, V2)
    new, old = status(serving)["history"]
    assert (new["event"], new["digest"], "until" in new) == ("Deployed", V2, False)
    assert (old["event"], old["digest"], old["until"]) == ("Deployed", V1, new["since"])
    assert new["s3"] == {"endpoint": "http://s3:9000"}
    names = [pod["metadata"]["name"] for pod in pods]
    assert new["evidence"] == [f"pod {name}: 98% of the trained effect is there" for name in names]
    lines = run_finetune(serving, "status", "adp/bot").splitlines()
    shown = lines[lines.index("History, the newest first:") + 1 :]
    assert f"Deployed {V2[:19]}" in shown[0]
    assert "98% of the trained effect" in shown[1]
    assert any(f"Deployed {V1[:19]}" in line and "until" in line and uri(V1) in line for line in shown)


def test_a_bad_adapter_is_rolled_back_and_stays_so_until_the_spec_changes(serving: ServingNamespace) -> None:
    pods = serve_first(serving)
    serving.apply_adapter("bot", V2)
    first = str(pods[0]["metadata"]["name"])
    until("the first pod moves", lambda: serving.desired()[0].get("pods") == [first])
    text = "only 3% of its effect is there"
    serving.report(pods[0], says("bot", V2, V1, "Refused", reason="ProofFailed", message=text))
    message = serving.await_condition("bot", "Stalled", "True", "RolledBack")
    assert text in message
    until("the pods are told", lambda: serving.desired()[0]["version"]["digest"] == V1)
    report_all(serving, pods, V1)
    until("no version is left behind", lambda: "previous" not in serving.desired()[0])
    until("the reports are in", lambda: all(pod["state"] == "Active" for pod in status(serving)["podStatus"]))
    rolled_back = status(serving)
    assert rolled_back["rollback"]["from"]["digest"] == V2
    assert [(entry["event"], entry["digest"]) for entry in rolled_back["history"]] == [
        ("RolledBack", V2),
        ("Deployed", V1),
    ]
    assert serving.get(ADP, "bot")["spec"]["adapter"]["digest"] == V2
    assert "RolledBack" in serving.kubectl("get", "events")

    serving.operator.kill()
    serving.operator.start()
    report_all(serving, pods, V1)
    until("a pass", lambda: serving.operator.metric("finetune_operator_reconciles_total", kind="ServingGroup") >= 1)
    until("the reports are in again", lambda: status(serving) == rolled_back)
    assert serving.desired()[0]["version"]["digest"] == V1

    assert "follows its spec again" in run_finetune(serving, "rollback", "bot", "--undo")
    until("it is tried again", lambda: serving.desired()[0].get("pods") == [first])
    serving.apply_adapter("bot", V3)
    until("the next version", lambda: serving.desired()[0]["version"]["digest"] == V3)
    assert "rollback" not in status(serving)


def test_a_rollout_without_progress_is_rolled_back(serving: ServingNamespace) -> None:
    pods = serve_first(serving)
    serving.apply_adapter("bot", V2, strategy={"progressDeadlineSeconds": 6})
    first = str(pods[0]["metadata"]["name"])
    until("the first pod moves", lambda: serving.desired()[0].get("pods") == [first])
    serving.report(pods[0], says("bot", V2, V1, "Failed", reason="DownloadFailed", message="S3 does not answer"))
    serving.await_condition("bot", "Ready", "Unknown", "DownloadFailed")
    message = serving.await_condition("bot", "Stalled", "True", "RolledBack")
    assert "6 s (spec.strategy.progressDeadlineSeconds)" in message
    assert "S3 does not answer" in message
    until("the pods are told", lambda: serving.desired()[0]["version"]["digest"] == V1)


def test_a_person_rolls_back_and_undoes_it_also_while_the_operator_is_down(serving: ServingNamespace) -> None:
    pods = serve_first(serving)
    assert "nothing to roll back to" in run_finetune(serving, "rollback", "bot")
    assert "follows its spec" in run_finetune(serving, "rollback", "bot", "--undo")
    serving.apply_adapter("bot", V2)
    roll_out(serving, pods, V2)
    serving.await_condition("bot", "Ready", "True", "Serving")
    assert "no such version" in run_finetune(serving, "rollback", "bot", "--to", "sha256:9")
    assert "ambiguous" in run_finetune(serving, "rollback", "bot", "--to", "sha256:")
    assert "use --undo" in run_finetune(serving, "rollback", "bot", "--to", "22222")
    assert "cannot be combined" in run_finetune(serving, "rollback", "bot", "--undo", "--to", "1")

    serving.operator.kill()
    output = run_finetune(serving, "rollback", "adp/bot", "--to", "1111")
    assert f"goes back from {V2[:19]} to {V1[:19]}" in output
    serving.operator.start()
    report_all(serving, pods, V2)
    roll_out(serving, pods, V1)
    serving.await_condition("bot", "Stalled", "True", "RolledBack")
    assert status(serving)["rollback"]["reason"] == "RollbackRequested"
    assert serving.get(ADP, "bot")["spec"]["adapter"]["digest"] == V2
    assert "already" in run_finetune(serving, "rollback", "bot")
    entries = serving.get(ADP, "bot")["metadata"]["managedFields"]
    owners = [entry["manager"] for entry in entries if "finetune-operator.io/rollback" in str(entry)]
    assert owners == ["finetune"], "Flux undoes what a manager writes whose name begins with kubectl"

    serving.apply_adapter("bot", V2)  # Git applies its manifest again
    assert serving.desired()[0]["version"]["digest"] == V1
    assert "follows its spec again" in run_finetune(serving, "rollback", "bot", "--undo")
    roll_out(serving, pods, V2)
    serving.await_condition("bot", "Ready", "True", "Serving")
    serving.apply_adapter("bot", V2, suspend=True)
    serving.await_condition("bot", "Suspended", "True", "Suspended")
    assert "is suspended" in run_finetune(serving, "rollback", "bot")


def finish(serving: ServingNamespace, name: str, digest: str, completed_at: str) -> None:
    """Create a FineTuneJob with a label and let it have succeeded, while no operator could train it."""
    serving.api.create_job(name)
    serving.kubectl("label", "finetunejob", name, "app=bot")
    true = {"status": "True", "reason": "AdapterVerified", "message": "m", "lastTransitionTime": completed_at}
    adapter = {"uri": uri(digest), "digest": digest, "sizeBytes": 1, "baseModel": "m", "peftType": "LORA", "rank": 8}
    job_status = {
        "observedGeneration": 1,
        "conditions": [{"type": kind, **true} for kind in ("Succeeded", "Ready")],
        "phase": "Succeeded",
        "adapter": {**adapter, "servableBy": ["vllm"]},
    }
    body = json.dumps({"status": job_status})
    serving.kubectl("patch", "finetunejob", name, "--subresource=status", "--type=merge", "-p", body)


def test_it_follows_the_newest_job_of_a_label_and_never_goes_back(serving: ServingNamespace) -> None:
    serving.kubectl("apply", "-f", "-", stdin=manifest())
    serving.apply_adapter("bot", adapter={"selector": {"matchLabels": {"app": "bot"}}})
    assert "app=bot" in serving.await_condition("bot", "Accepted", "Unknown", "FineTuneJobNotFound")
    assert serving.agent() is None
    serving.operator.kill()
    finish(serving, "monday", V1, "2026-01-05T00:00:00Z")
    serving.operator.start()
    pods = sorted(serving.pods(), key=lambda pod: str(pod["metadata"]["name"]))
    report_all(serving, pods, V1)
    serving.await_condition("bot", "Ready", "True", "Serving")

    serving.operator.kill()
    finish(serving, "tuesday", V2, "2026-01-06T00:00:00Z")
    serving.operator.start()
    report_all(serving, pods, V1)
    roll_out(serving, pods, V2)
    served = status(serving)["desired"]
    assert served["fineTuneJob"]["name"] == "tuesday"

    serving.kubectl("delete", "finetunejob", "tuesday")
    serving.kubectl("label", "finetunejob", "monday", "touched=yes")
    serving.apply_adapter("bot", adapter={"selector": {"matchLabels": {"app": "bot"}}}, strategy={"maxUnavailable": 2})
    until("a pass", lambda: status(serving)["observedGeneration"] == 2)
    assert status(serving)["desired"] == served
    assert serving.desired()[0]["version"]["digest"] == V2
    serving.await_condition("bot", "Ready", "True", "Serving")


def test_the_next_pod_takes_a_version_after_the_pause(serving: ServingNamespace) -> None:
    pods = serve_first(serving)
    serving.apply_adapter("bot", V2, strategy={"pauseSeconds": 8})
    first, second = (str(pod["metadata"]["name"]) for pod in pods)
    until("the first pod moves", lambda: serving.desired()[0].get("pods") == [first])
    begin = time.monotonic()
    report_all(serving, pods[:1], V2)
    until("it is seen", lambda: "pauseSeconds" in serving.conditions("bot")["Ready"][2])
    assert serving.desired()[0]["pods"] == [first]
    until("the second pod moves", lambda: serving.desired()[0].get("pods") == [first, second])
    assert time.monotonic() - begin > 7


def test_a_pod_that_refuses_a_version_holds_up_no_other_within_the_budget(serving: ServingNamespace) -> None:
    pods = serve_first(serving, 3)
    names = [str(pod["metadata"]["name"]) for pod in pods]
    serving.apply_adapter("bot", V2, strategy={"maxUnavailable": 2})
    until("two pods move", lambda: serving.desired()[0].get("pods") == names[:2])
    serving.report(pods[0], says("bot", V2, V1, "Refused", reason="RankTooHigh", message="its maximum is 16"))
    serving.await_condition("bot", "Reconciling", "True", "RankTooHigh")
    report_all(serving, pods[1:2], V2)
    until("the third pod moves", lambda: serving.desired()[0].get("pods") == names)
    report_all(serving, pods[2:], V2)
    message = serving.await_condition("bot", "Stalled", "True", "RankTooHigh")
    assert names[0] in message
    assert "2 pods serve it" in message
    assert "rollback" not in status(serving)
    assert serving.desired()[0]["version"]["digest"] == V2
