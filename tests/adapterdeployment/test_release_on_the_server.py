"""Roll-outs as releases, by the operator against a real API server; the agents' reports are real HTTP reports."""

from collections.abc import Sequence
from typing import Any

import pytest

from tests.adapterdeployment.groups import V1, V2, uri
from tests.adapterdeployment.serving import ADP, ServingNamespace, manifest, says
from tests.cli.run import finetune
from tools.testing.kubernetes_api import Object
from tools.testing.waiting import until

pytestmark = [pytest.mark.cluster]


def take(digest: str) -> Object:
    """The spec.adapter that asks for a digest."""
    return {"uri": uri(digest), "digest": digest, "s3": {"endpoint": "http://s3:9000"}, "secretRef": {"name": "keys"}}


def serve_first(serving: ServingNamespace, **spec: Any) -> list[Object]:
    """Let two pods serve the first version; return the pods by name."""
    serving.kubectl("apply", "-f", "-", stdin=manifest())
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
    found: Object = serving.get(ADP, "bot").get("status", {})
    return found


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
