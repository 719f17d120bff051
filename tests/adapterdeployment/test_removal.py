"""What is removed from a Deployment whose agent another manager owns as well."""

from typing import Any

import pytest

from finetune_operator.kube.kinds import Object
from finetune_operator.resources.injected import find_copiers, is_own_field
from finetune_operator.resources.removal import build_removal_of_copy
from tests.adapterdeployment.groups import injected


def copied(operation: str = "Update", variable: str = "kubectl-rollout") -> Object:
    """Return a Deployment whose agent another manager owns, and whose engine's variable ``variable`` owns."""
    deployment = injected("keys")
    env: Any = {
        'k:{"name":"vllm"}': {"f:env": {'k:{"name":"VLLM_ALLOW_RUNTIME_LORA_UPDATING"}': {"f:value": {}}}},
    }
    agent: Any = {'k:{"name":"finetune-agent"}': {"f:image": {}}}
    for manager, spec in (("kubectl-rollout", {"f:initContainers": agent}), (variable, {"f:containers": env})):
        fields = {"f:spec": {"f:template": {"f:spec": spec}}}
        deployment["metadata"]["managedFields"].append({"manager": manager, "operation": operation, "fieldsV1": fields})
    return deployment


def test_an_agent_of_ours_alone_needs_no_patch() -> None:
    assert build_removal_of_copy(injected("keys")) is None


def test_the_copy_is_removed_with_all_its_volumes_and_variables() -> None:
    patch = build_removal_of_copy(copied())
    assert patch is not None
    spec = patch["spec"]["template"]["spec"]
    assert spec["initContainers"] == [{"name": "finetune-agent", "$patch": "delete"}]
    volumes = injected("keys")["spec"]["template"]["spec"]["volumes"]
    assert {item["name"] for item in spec["volumes"]} == {volume["name"] for volume in volumes}
    assert spec["containers"] == [
        {
            "name": "vllm",
            "volumeMounts": [{"mountPath": "/adapters", "$patch": "delete"}],
            "env": [{"name": "VLLM_ALLOW_RUNTIME_LORA_UPDATING", "$patch": "delete"}],
        }
    ]


def test_a_variable_that_the_user_set_stays() -> None:
    patch = build_removal_of_copy(copied(variable="helm"))
    assert patch is not None
    assert "env" not in patch["spec"]["template"]["spec"]["containers"][0]


def test_a_manager_that_applies_the_agent_itself_keeps_it() -> None:
    assert find_copiers(copied(operation="Apply")) == set()
    assert build_removal_of_copy(copied(operation="Apply")) is None


@pytest.mark.parametrize(
    ("path", "ours"),
    [
        ('.spec.template.spec.initContainers[name="finetune-agent"].image', True),
        ('.spec.template.spec.volumes[name="finetune-desired"].configMap.name', True),
        (".spec.template.metadata.labels.finetune-operator.io/role", True),
        ('.spec.template.spec.containers[name="vllm"].env[name="VLLM_ALLOW_RUNTIME_LORA_UPDATING"].value', False),
        ('.spec.template.spec.containers[name="vllm"].volumeMounts[mountPath="/adapters"].name', False),
    ],
)
def test_which_fields_can_only_be_ours(path: str, ours: bool) -> None:
    assert is_own_field(path) is ours
