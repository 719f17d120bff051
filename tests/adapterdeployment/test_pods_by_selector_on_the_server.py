"""The operator against a real API server with pods that only a selector names: it changes none of their templates."""

import json
from typing import Any

import pytest

from finetune_engines import ENGINES
from finetune_operator.kube.kinds import POD
from finetune_operator.kube.workloads import WorkloadRef
from finetune_operator.resources.injection import AgentParameters, build_snippet, config_map_name
from tests.adapterdeployment.groups import V1, V2
from tests.adapterdeployment.serving import ADP, ServingNamespace, manifest, says
from tools.testing.kubernetes_api import Object
from tools.testing.waiting import until

pytestmark = [pytest.mark.cluster]
TARGET = {"selector": {"matchLabels": {"app": "llama"}}}
REF = WorkloadRef(POD, "app=llama")
NAME = config_map_name(REF.group)


def create(serving: ServingNamespace, name: str, *, agent: bool = True) -> Object:
    """Create a pod with its user's agent, or without, that runs and takes traffic."""
    spec: Any = manifest()["spec"]["template"]["spec"]
    labels = {"app": "llama"}
    if agent:
        parameters = AgentParameters("vllm", ENGINES["vllm"], ("keys",), "finetune-operator", "IfNotPresent", "")
        template = build_snippet(REF.group, parameters)
        own = template["spec"]
        engine = {**spec["containers"][0], "env": own["containers"][0]["env"]}
        engine["volumeMounts"] = [*engine["volumeMounts"], *own["containers"][0]["volumeMounts"]]
        spec = {
            **spec,
            "initContainers": [*spec["initContainers"], *own["initContainers"]],
            "containers": [engine, *spec["containers"][1:]],
            "volumes": [*spec["volumes"], *own["volumes"]],
        }
        labels |= template["metadata"]["labels"]
    body = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "labels": labels}, "spec": spec}
    serving.kubectl("create", "-f", "-", stdin=body)
    serving.run(serving.get("pod", name))
    return serving.get("pod", name)


def desired(serving: ServingNamespace) -> list[Object]:
    config_map = serving.reader.find("configmap", NAME)
    return list(json.loads(config_map["data"]["desired.json"])["adapters"]) if config_map else []


def test_pods_with_their_users_agent_serve_and_what_others_lack_is_named(serving: ServingNamespace) -> None:
    serving.apply_adapter("bot", target=TARGET)
    message = serving.await_condition("bot", "Ready", "Unknown", "TargetNotFound")
    assert NAME in message
    create(serving, "a", agent=False)
    message = serving.await_condition("bot", "Injected", "False", "AgentMissing")
    assert "app=llama" in serving.kubectl("get", ADP, "bot", "--no-headers").split()
    assert "1 of 1 pods with app=llama cannot serve: pod a has no container finetune-agent" in message
    serving.kubectl("delete", "pod", "a", "--grace-period=0", "--force")
    pods = [create(serving, name) for name in ("b", "c")]
    serving.await_condition("bot", "Injected", "True", "AgentInjected")
    until("it is told", lambda: [entry["servedName"] for entry in desired(serving)] == ["bot-name"])
    for pod in pods:
        serving.report(pod, says("bot", V1, V1))
    serving.await_condition("bot", "Ready", "True", "Serving")

    serving.apply_adapter("bot", V2, target=TARGET)
    until("the first pod moves", lambda: desired(serving)[0].get("pods") == ["b"])
    annotations = until("its kubelet is told", lambda: serving.get("pod", "b")["metadata"].get("annotations"))
    assert "finetune-operator.io/desired-state" in annotations
    serving.report(pods[0], says("bot", V2, V2))
    until("the second pod moves", lambda: desired(serving)[0].get("pods") == ["b", "c"])
    serving.report(pods[1], says("bot", V2, V2))
    serving.await_condition("bot", "Ready", "True", "Serving")

    serving.kubectl("delete", ADP, "bot")
    until("they are told to serve nothing", lambda: desired(serving) == [])
    assert serving.reader.find("configmap", NAME) is not None
    serving.kubectl("delete", "pod", "b", "c", "--grace-period=0", "--force")
    until("the ConfigMap is gone", lambda: serving.reader.find("configmap", NAME) is None)
