"""The life of an AdapterDeployment in Git, the same with each tool, from its first roll-out to its removal."""

from contextlib import suppress
from typing import Protocol

from kubernetes.client.exceptions import NotFoundException

from tests.adapterdeployment.gitops.repository import Object, Repository
from tests.adapterdeployment.groups import V1, V2, V3
from tests.adapterdeployment.serving import ADP, AGENT, ServingNamespace, build_adapter, manifest, says
from tests.adapterdeployment.test_release_on_the_server import report_all, roll_out, status
from tools.testing.waiting import until


class GitOpsTool(Protocol):
    """A GitOps tool that applies the branch ``main``."""

    def await_applied(self, revision: str) -> None:
        """Wait until the tool has applied a commit."""

    def await_health(self, health: str) -> str:
        """Wait until the tool calls the last commit ``Progressing``, ``Healthy`` or ``Failed``; return its words."""

    def await_comparison(self) -> None:
        """Wait until the tool has compared Git and cluster again and found no drift."""


def live(serving: ServingNamespace, repository: Repository, tool: GitOpsTool) -> None:
    """Live the whole life. The tool heals drift by itself, and this must not fight the operator."""
    tool.await_applied(
        repository.commit({"web.yaml": manifest(2), "bot.yaml": build_adapter("bot", V1)}, "serve version 1")
    )
    pods = sorted(serving.pods(), key=lambda pod: str(pod["metadata"]["name"]))
    tool.await_health("Progressing")
    report_all(serving, pods, V1)
    tool.await_health("Healthy")
    generation = serving.await_rollout()

    tool.await_applied(repository.commit({"bot.yaml": build_adapter("bot", V2)}, "serve version 2"))
    first = [str(pods[0]["metadata"]["name"])]
    until("the first pod moves", lambda: serving.desired()[0].get("pods") == first)
    tool.await_health("Progressing")
    roll_out(serving, pods, V2)
    tool.await_health("Healthy")

    tool.await_applied(repository.commit({"bot.yaml": build_adapter("bot", V3)}, "serve version 3, which is bad"))
    until("the first pod moves", lambda: serving.desired()[0].get("pods") == first)
    tool.await_health("Progressing")
    text = "only 3% of its effect is there"
    serving.report(pods[0], says("bot", V3, V2, "Refused", reason="ProofFailed", message=text))
    assert "bot" in tool.await_health("Failed")
    until("the pods are told", lambda: serving.desired()[0]["version"]["digest"] == V2)
    report_all(serving, pods, V2)
    until("no version is left behind", lambda: "previous" not in serving.desired()[0])
    for _ in range(2):
        tool.await_comparison()
    assert serving.get(ADP, "bot")["spec"]["adapter"]["digest"] == V3
    assert serving.desired()[0]["version"]["digest"] == V2
    assert "RolledBack" in [entry["event"] for entry in status(serving)["history"]]
    tool.await_health("Failed")

    tool.await_applied(repository.revert())
    tool.await_health("Healthy")
    for _ in range(2):
        tool.await_comparison()
    assert serving.desired()[0]["version"]["digest"] == V2
    assert serving.deployment()["metadata"]["generation"] == generation, "nobody has changed the user's Deployment"
    assert serving.agent() is not None

    web = manifest(2)
    web["spec"]["template"]["spec"]["containers"][1]["image"] = "logger:2"
    tool.await_applied(repository.commit({"web.yaml": web}, "a new logger"))
    serving.await_rollout()
    tool.await_health("Progressing")
    report_all(serving, serving.pods(), V2)
    tool.await_health("Healthy")
    assert [item["image"] for item in containers(serving)] == ["vllm/vllm-openai:v0.32.0", "logger:2"]
    assert serving.agent() is not None

    tool.await_applied(repository.commit({"bot.yaml": None}, "serve the base only"))
    until("the agent is removed", lambda: serving.agent() is None)
    until("the AdapterDeployment is gone", lambda: serving.reader.find(ADP, "bot") is None)
    assert AGENT not in str(serving.deployment()["spec"])
    until("the pods have no agent", lambda: are_replaced(serving))
    tool.await_health("Healthy")


def containers(serving: ServingNamespace) -> list[Object]:
    """Return the containers of the user's Deployment."""
    found: list[Object] = serving.deployment()["spec"]["template"]["spec"]["containers"]
    return found


def are_replaced(serving: ServingNamespace) -> bool:
    """Do the kubelet's part for all new pods; return whether no pod has the agent."""
    pods = serving.api.pods()
    for pod in pods:
        if pod["status"].get("phase") == "Pending":
            with suppress(NotFoundException):  # the Deployment has replaced it since
                serving.run(pod)
    return AGENT not in str([pod["spec"] for pod in pods])
