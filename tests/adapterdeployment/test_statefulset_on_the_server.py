"""The operator against a real API server with a StatefulSet: the agent comes and goes, pods are replaced in order."""

import copy
import json
from contextlib import suppress
from typing import Any

import pytest
from kubernetes.client.exceptions import NotFoundException

from tests.adapterdeployment.groups import V1, V2
from tests.adapterdeployment.serving import ADP, AGENT, GROUP, ServingNamespace, manifest, says
from tools.testing.kubernetes_api import Object
from tools.testing.waiting import until

pytestmark = [pytest.mark.cluster]
TARGET = {"statefulSetRef": {"name": "web"}}
CONFIG_MAP = "finetune-adapters.statefulset.web"


def stateful(replicas: int = 2, **spec: Any) -> Object:
    """A user's StatefulSet."""
    found = manifest(replicas)
    return {**found, "kind": "StatefulSet", "spec": {**found["spec"], "serviceName": "web", **spec}}


def agents(serving: ServingNamespace) -> list[str]:
    """The images of the agents in the StatefulSet's template."""
    containers = serving.get("statefulset", "web")["spec"]["template"]["spec"].get("initContainers", [])
    return [container["image"] for container in containers if container["name"] == AGENT]


def list_pods(serving: ServingNamespace) -> list[Object]:
    """The living pods, all running: the kubelet's part."""
    living = [pod for pod in serving.api.pods() if "deletionTimestamp" not in pod["metadata"]]
    for pod in living:
        if pod["status"].get("phase") == "Pending":
            with suppress(NotFoundException):  # the StatefulSet has replaced it since
                serving.run(pod)
    return sorted(living, key=lambda pod: str(pod["metadata"]["name"]))


def await_agents(serving: ServingNamespace, names: list[str]) -> list[Object]:
    """Wait until exactly these pods have the agent."""

    def ask() -> list[Object] | None:
        pods = [pod for pod in list_pods(serving) if f"{GROUP}/deployment" in pod["metadata"].get("annotations", {})]
        return pods if [pod["metadata"]["name"] for pod in pods] == names else None

    return until(f"the agents of {names}", ask)


def await_pods(serving: ServingNamespace, number: int) -> None:
    until("the pods", lambda: len(list_pods(serving)) == number)


def own(workload: Object) -> Object:
    """The user's part of a StatefulSet."""
    owned = copy.deepcopy(workload)
    owned.pop("status", None)
    for name in ("generation", "resourceVersion", "managedFields"):
        owned["metadata"].pop(name, None)
    return owned


def desired(serving: ServingNamespace) -> Object:
    (entry,) = json.loads(serving.get("configmap", CONFIG_MAP)["data"]["desired.json"])["adapters"]
    return dict(entry)


def test_the_agent_comes_pods_take_turns_and_all_of_it_goes(serving: ServingNamespace) -> None:
    serving.kubectl("apply", "-f", "-", stdin=stateful())
    await_pods(serving, 2)
    before = own(serving.get("statefulset", "web"))
    serving.apply_adapter("bot", target=TARGET)
    serving.await_condition("bot", "Injected", "True", "AgentInjected")
    assert agents(serving) == ["operator:1"]
    pods = await_agents(serving, ["web-0", "web-1"])
    for pod in pods:
        serving.report(pod, says("bot", V1, V1))
    serving.await_condition("bot", "Ready", "True", "Serving")
    table = serving.kubectl("get", "adapterdeployment", "bot")
    assert "web" in table.splitlines()[1].split()

    generation = serving.get("statefulset", "web")["metadata"]["generation"]
    serving.apply_adapter("bot", V2, target=TARGET)
    until("the highest ordinal moves", lambda: desired(serving).get("pods") == ["web-1"])
    serving.report(pods[1], says("bot", V2, V2))
    until("the next one moves", lambda: desired(serving).get("pods") == ["web-0", "web-1"])
    serving.report(pods[0], says("bot", V2, V2))
    serving.await_condition("bot", "Ready", "True", "Serving")
    assert serving.get("statefulset", "web")["metadata"]["generation"] == generation

    serving.kubectl("delete", ADP, "bot")
    until("the agent is out", lambda: not agents(serving))
    assert own(serving.get("statefulset", "web")) == before
    until("the ConfigMap is gone", lambda: serving.reader.find("configmap", CONFIG_MAP) is None)


def test_a_partition_is_respected_and_named(serving: ServingNamespace) -> None:
    strategy = {"type": "RollingUpdate", "rollingUpdate": {"partition": 1}}
    serving.kubectl("apply", "-f", "-", stdin=stateful(updateStrategy=strategy))
    await_pods(serving, 2)
    serving.apply_adapter("bot", target=TARGET)
    (pod,) = await_agents(serving, ["web-1"])
    serving.report(pod, says("bot", V1, V1))
    message = serving.await_condition("bot", "Ready", "Unknown", "TargetPaused")
    assert "partition 1, so Kubernetes gives these pods no agent: web-0" in message
    strategy["rollingUpdate"] = {"partition": 0}
    serving.kubectl("apply", "-f", "-", stdin=stateful(updateStrategy=strategy))
    for pod in await_agents(serving, ["web-0", "web-1"]):
        serving.report(pod, says("bot", V1, V1))
    serving.await_condition("bot", "Ready", "True", "Serving")


def test_with_on_delete_a_pod_gets_the_agent_when_it_is_deleted(serving: ServingNamespace) -> None:
    serving.kubectl("apply", "-f", "-", stdin=stateful(updateStrategy={"type": "OnDelete"}))
    await_pods(serving, 2)
    serving.apply_adapter("bot", target=TARGET)
    message = serving.await_condition("bot", "Ready", "Unknown", "TargetPaused")
    assert "kubectl delete pod web-0 web-1" in message
    serving.kubectl("delete", "pod", "web-0", "web-1", "--grace-period=0", "--force")
    for pod in await_agents(serving, ["web-0", "web-1"]):
        serving.report(pod, says("bot", V1, V1))
    serving.await_condition("bot", "Ready", "True", "Serving")


def test_a_deployment_of_the_same_name_is_another_group(serving: ServingNamespace) -> None:
    serving.kubectl("apply", "-f", "-", stdin=stateful())
    serving.apply_adapter("bot", target=TARGET)
    serving.apply_adapter("other", V2)
    serving.await_condition("other", "Ready", "Unknown", "TargetNotFound")
    serving.kubectl("apply", "-f", "-", stdin=manifest())
    serving.await_condition("other", "Injected", "True", "AgentInjected")
    serving.await_condition("bot", "Injected", "True", "AgentInjected")
    assert desired(serving)["servedName"] == "bot-name"
    assert [entry["servedName"] for entry in serving.desired()] == ["other-name"]
    serving.kubectl("delete", ADP, "other")
    until("its agent is out", lambda: serving.agent() is None)
    assert agents(serving) == ["operator:1"]
