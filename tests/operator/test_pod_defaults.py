"""The administrator's settings of every pod: the chart's values ``pods``, and CPU and memory of each role."""

import json
from dataclasses import replace
from typing import Any

import pytest

from finetune_api.core_v1.quantity import format_quantity, parse_quantity
from finetune_api.finetunejob import ContainerResources
from finetune_engines import ENGINES
from finetune_operator.pod_defaults import PodDefaults
from finetune_operator.resources.injection import AgentParameters, build_injection
from finetune_operator.resources.requirements import merge_requirements
from finetune_operator.settings import Settings, SettingsError
from tests.operator.fake_cluster import SETTINGS
from tests.operator.pods import build_pods

Object = dict[str, Any]
PODS: Object = {
    "fixedUser": False,
    "env": [{"name": "HTTPS_PROXY", "value": "http://proxy"}, {"name": "NO_PROXY", "value": ".svc"}],
    "envFrom": [{"configMapRef": {"name": "proxy", "optional": True}}],
    "volumes": [{"name": "ca", "configMap": {"name": "private-ca"}}],
    "volumeMounts": [{"name": "ca", "mountPath": "/etc/ssl/private-ca", "readOnly": True}],
    "imagePullSecrets": [{"name": "mirror"}],
    "tolerations": [{"operator": "Exists"}],
    "hostAliases": [{"ip": "10.0.0.7", "hostnames": ["hub"]}],
    "dnsConfig": {"options": [{"name": "ndots", "value": "1"}]},
    "preflightNodeSelector": {"pool": "cpu"},
}
DEPLOYMENT = {
    "kind": "Deployment",
    "metadata": {"namespace": "ns", "name": "vllm", "uid": "u"},
    "spec": {"template": {"spec": {"containers": [{"name": "vllm"}]}}},
}


def settings(pods: Object) -> Settings:
    return replace(SETTINGS, pods=PodDefaults.model_validate(pods))


def pods(defaults: Object, **spec: Any) -> tuple[Object, Object]:
    return build_pods(settings(defaults), **spec)


def agent(defaults: Object) -> tuple[Object, list[Object]]:
    """Return the agent's container and the pod's volumes."""
    own_settings = settings(defaults)
    parameters = AgentParameters(
        "vllm", ENGINES["vllm"], (), "image", "Always", "http://operator:8080", own_settings.pods
    )
    spec = build_injection(DEPLOYMENT, parameters)["spec"]["template"]["spec"]
    return spec["initContainers"][0], spec["volumes"]


def test_preflight_and_trainer_have_what_the_administrator_gives() -> None:
    preflight, trainer = pods(PODS)
    for pod in (preflight, trainer):
        (container,) = pod["containers"]
        assert container["env"][-2:] == PODS["env"]
        assert container["envFrom"] == PODS["envFrom"]
        assert PODS["volumeMounts"][0] in container["volumeMounts"]
        assert PODS["volumes"][0] in pod["volumes"]
        for name in ("imagePullSecrets", "tolerations", "hostAliases", "dnsConfig"):
            assert pod[name] == PODS[name]
        assert pod["securityContext"] == {"runAsNonRoot": True, "seccompProfile": {"type": "RuntimeDefault"}}
    assert preflight["nodeSelector"] == {"pool": "cpu"}
    assert "nodeSelector" not in trainer


def test_the_agent_has_variables_and_volumes_under_names_of_our_own() -> None:
    container, volumes = agent(PODS)
    assert container["env"][-2:] == PODS["env"]
    assert container["envFrom"] == PODS["envFrom"]
    assert {"name": "finetune-shared-ca", "configMap": {"name": "private-ca"}} in volumes
    assert {**PODS["volumeMounts"][0], "name": "finetune-shared-ca"} in container["volumeMounts"]
    assert "runAsUser" not in container["securityContext"]
    assert container["securityContext"]["runAsNonRoot"]


def test_the_jobs_own_values_have_precedence() -> None:
    template = {
        "env": [{"name": "NO_PROXY", "value": "*"}],
        "volumes": [{"name": "ca", "secret": {"secretName": "own-ca"}}],
        "volumeMounts": [{"name": "ca", "mountPath": "/etc/ssl/private-ca"}],
        "hostAliases": [{"ip": "10.0.0.7", "hostnames": ["other"]}],
        "dnsConfig": {"searches": ["example.com"]},
        "securityContext": {"runAsUser": 1000},
    }
    for pod in pods(PODS, podTemplate=template):
        (container,) = pod["containers"]
        values = {item["name"]: item["value"] for item in container["env"]}
        assert (values["NO_PROXY"], values["HTTPS_PROXY"]) == ("*", "http://proxy")
        assert [volume for volume in pod["volumes"] if volume["name"] == "ca"] == template["volumes"]
        assert pod["hostAliases"] == template["hostAliases"]
        assert pod["dnsConfig"] == template["dnsConfig"]
        assert pod["securityContext"]["runAsUser"] == 1000


def test_every_container_has_requests_and_limits_of_cpu_and_memory() -> None:
    containers = [pod["containers"][0] for pod in pods({})] + [agent({})[0]]
    for container in containers:
        for kind in ("requests", "limits"):
            assert {"cpu", "memory"} <= container["resources"][kind].keys(), container["name"]


def test_a_trainer_has_as_much_more_as_it_has_gpus() -> None:
    _, trainer = pods({}, resources={"gpusPerNode": 4})
    assert trainer["containers"][0]["resources"] == {
        "requests": {"cpu": "2", "memory": "8Gi", "nvidia.com/gpu": "4"},
        "limits": {"cpu": "64", "memory": "256Gi", "nvidia.com/gpu": "4"},
    }


def test_spec_and_chart_set_the_resources_of_each_role() -> None:
    defaults = {
        "resources": {
            "trainer": {"requests": {"cpu": "1"}},
            "preflight": {"requests": {"cpu": "1"}, "limits": {"memory": "4Gi"}},
            "agent": {"limits": {"memory": "1Gi"}},
        }
    }
    preflight, trainer = pods(
        defaults,
        resources={"gpusPerNode": 0, "limits": {"memory": "8Gi"}, "preflight": {"limits": {"memory": "6Gi"}}},
    )
    assert preflight["containers"][0]["resources"] == {"requests": {"cpu": "1"}, "limits": {"memory": "6Gi"}}
    assert trainer["containers"][0]["resources"] == {"requests": {"cpu": "1"}, "limits": {"memory": "8Gi"}}
    assert agent(defaults)[0]["resources"] == {"requests": {}, "limits": {"memory": "1Gi"}}


@pytest.mark.parametrize(
    ("resources", "requests", "limits"),
    [
        ({}, "2Gi", "64Gi"),
        ({"requests": {"memory": "128Gi"}}, "128Gi", "128Gi"),
        ({"limits": {"memory": "1Gi"}}, "1Gi", "1Gi"),
        ({"requests": {"memory": 1}, "limits": {"memory": "1G"}}, 1, "1G"),
    ],
    ids=["neither", "a request above the limit", "a limit below the request", "both"],
)
def test_a_request_is_never_above_its_limit(resources: Object, requests: object, limits: object) -> None:
    defaults = ContainerResources(requests={"memory": "2Gi"}, limits={"memory": "64Gi"})
    merged = merge_requirements(defaults, ContainerResources.model_validate(resources))
    assert (merged["requests"]["memory"], merged["limits"]["memory"]) == (requests, limits)


@pytest.mark.parametrize(
    ("text", "number", "spelling"),
    [
        ("500m", "0.5", "500m"), ("1.5", "1.5", "1500m"), ("2", "2", "2"), (3, "3", "3"), ("1Gi", "1073741824", "1Gi"),
        ("1e3", "1000", "1000"), ("1E", "1000000000000000000", "976562500000000Ki"), ("0", "0", "0"),
        ("1536Mi", "1610612736", "1536Mi"),
    ],
)  # fmt: skip
def test_a_quantity_is_read_and_written_as_kubernetes_does(text: str | int, number: str, spelling: str) -> None:
    assert str(int(parse_quantity(text)) if "." not in number else parse_quantity(text).normalize()) == number
    assert parse_quantity(spelling) == parse_quantity(text)
    assert format_quantity(parse_quantity(text)) == spelling


def test_a_wrong_default_ends_the_operator_with_its_path() -> None:
    environment = {"TRAINER_IMAGE": "a", "OPERATOR_IMAGE": "b", "PODS": json.dumps({"env": [{"nam": "A"}]})}
    with pytest.raises(SettingsError, match=r"FINETUNE_OPERATOR_PODS.*pods\.env\[0\]\.nam"):
        Settings.of({f"FINETUNE_OPERATOR_{name}": text for name, text in environment.items()})
