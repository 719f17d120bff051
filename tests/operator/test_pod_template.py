"""What spec.podTemplate puts into the pods of a job, and which of it reaches the preflight."""

from typing import Any

import pytest

from finetune_operator.kube.errors import InvalidError
from finetune_operator.policies.refused_job import explain_refused_job
from tests.operator.locked_down import POD_TEMPLATE
from tests.operator.pods import build_pods

Object = dict[str, Any]
PLACEMENT = {
    "affinity", "topologySpreadConstraints", "nodeSelector", "schedulerName", "priorityClassName", "runtimeClassName",
    "terminationGracePeriodSeconds",
}  # fmt: skip


def pods(template: Object, avoided: tuple[str, ...] = (), **spec: Any) -> tuple[Object, Object]:
    return build_pods(avoided=avoided, **spec, podTemplate=template)


def container(pod: Object) -> Object:
    (only,) = pod["containers"]
    return dict(only)


def test_every_field_of_a_pod_is_in_the_trainer_pod_as_it_was_written() -> None:
    _, trainer = pods(POD_TEMPLATE)
    own_container = container(trainer)
    for name, value in POD_TEMPLATE.items():
        if name in ("labels", "annotations", "containerSecurityContext", "securityContext"):
            continue
        written_to = (
            own_container if name in ("image", "command", "args", "env", "envFrom", "volumeMounts") else trainer
        )
        if isinstance(value, list):
            assert [item for item in written_to[name] if item in value] == value, name
        else:
            assert written_to[name] == value, name
    assert trainer["securityContext"] == {
        "runAsNonRoot": True,
        "seccompProfile": {"type": "RuntimeDefault"},
        "runAsUser": 1000,
        "fsGroup": 2000,
        "supplementalGroups": [3000],
    }
    assert own_container["securityContext"] == {
        "readOnlyRootFilesystem": False,
        "allowPrivilegeEscalation": False,
        "capabilities": {"drop": ["ALL"], "add": ["NET_BIND_SERVICE"]},
    }


def test_the_preflight_has_network_and_identity_and_no_placement() -> None:
    preflight, trainer = pods(POD_TEMPLATE)
    for name in (
        "serviceAccountName", "tolerations", "hostAliases", "dnsPolicy", "dnsConfig", "imagePullSecrets",
        "securityContext", "volumes",
    ):  # fmt: skip
        assert preflight[name] == trainer[name], name
    assert trainer.keys() >= PLACEMENT
    assert not PLACEMENT & preflight.keys()
    own_container = container(preflight)
    assert own_container["envFrom"] == POD_TEMPLATE["envFrom"]
    assert own_container["env"][-2:] == POD_TEMPLATE["env"]
    assert own_container["volumeMounts"] == container(trainer)["volumeMounts"]
    assert own_container["image"] == "operator:1"
    assert own_container["command"] == ["python", "-m", "finetune_trainer", "preflight"]
    assert own_container["securityContext"]["readOnlyRootFilesystem"], "our image needs no more"


@pytest.mark.parametrize("template", [{}, POD_TEMPLATE], ids=["nothing asked for", "much asked for"])
def test_no_pod_has_the_default_token(template: Object) -> None:
    assert all(pod["automountServiceAccountToken"] is False for pod in pods(template))


def test_without_a_security_context_the_user_is_ours() -> None:
    for pod in pods({}):
        assert pod["securityContext"]["runAsUser"] == pod["securityContext"]["fsGroup"] == 65532


def test_an_empty_security_context_leaves_the_user_to_the_cluster() -> None:
    for pod in pods({"securityContext": {}}):
        assert pod["securityContext"] == {"runAsNonRoot": True, "seccompProfile": {"type": "RuntimeDefault"}}
        assert "runAsUser" not in container(pod)["securityContext"]
        assert {"name": "USER", "value": "finetune"} in container(pod)["env"], "PyTorch asks for a name"


def test_scratch_space_of_ones_own_replaces_ours() -> None:
    template = {
        "volumes": [
            {"name": "fast", "emptyDir": {"sizeLimit": "100Gi"}},
            {"name": "memory", "emptyDir": {"medium": "Memory", "sizeLimit": "8Gi"}},
        ],
        "volumeMounts": [{"name": "fast", "mountPath": "/tmp"}, {"name": "memory", "mountPath": "/dev/shm"}],
    }
    _, trainer = pods({})
    assert "finetune-tmp" in [volume["name"] for volume in trainer["volumes"]]
    for pod in pods(template):
        paths = [mount["mountPath"] for mount in container(pod)["volumeMounts"]]
        assert sorted(paths) == sorted(set(paths))
        assert {"name": "fast", "mountPath": "/tmp"} in container(pod)["volumeMounts"]
        names = [volume["name"] for volume in pod["volumes"]]
        assert "finetune-tmp" not in names
        assert {"fast", "memory", "finetune-token"} <= set(names)


def test_scratch_space_of_ones_own_stays_with_several_gpus() -> None:
    template = {
        "volumes": [{"name": "memory", "emptyDir": {"medium": "Memory", "sizeLimit": "8Gi"}}],
        "volumeMounts": [{"name": "memory", "mountPath": "/dev/shm"}],
    }
    _, trainer = pods(template, resources={"gpusPerNode": 2})
    mounts = {mount["mountPath"]: mount["name"] for mount in container(trainer)["volumeMounts"]}
    assert mounts["/dev/shm"] == "memory"


def test_a_home_of_ones_own_replaces_ours_and_others_may_be_referred_to() -> None:
    variables = [{"name": "HOME", "value": "/data"}, {"name": "RUN", "value": "run-$(FINETUNE_ATTEMPT)"}]
    _, trainer = pods({"env": variables})
    names = [variable["name"] for variable in container(trainer)["env"]]
    assert len(names) == len(set(names))
    assert {"name": "HOME", "value": "/data"} in container(trainer)["env"]
    assert names.index("FINETUNE_ATTEMPT") < names.index("RUN")


def test_avoided_nodes_are_added_to_the_users_affinity() -> None:
    _, trainer = pods(POD_TEMPLATE, avoided=("node-7",))
    user = POD_TEMPLATE["affinity"]
    assert trainer["affinity"]["podAntiAffinity"] == user["podAntiAffinity"]
    nodes = trainer["affinity"]["nodeAffinity"]
    required = "requiredDuringSchedulingIgnoredDuringExecution"
    assert nodes[required] == user["nodeAffinity"][required]
    (preference,) = nodes["preferredDuringSchedulingIgnoredDuringExecution"]
    assert preference["preference"]["matchFields"][0]["values"] == ["node-7"]


def test_a_privileged_container_does_not_ask_for_the_contrary() -> None:
    _, trainer = pods({"containerSecurityContext": {"privileged": True}})
    assert "allowPrivilegeEscalation" not in container(trainer)["securityContext"]


def test_a_refused_job_is_explained_with_the_fields_of_the_spec() -> None:
    causes = [
        {"field": "spec.template.spec.containers[0].env[9].name", "message": "Invalid value"},
        {"field": "spec.template.spec.tolerations[0].operator", "message": "Invalid value"},
        {"field": "spec.template.spec.containers[0].resources.requests[memory]", "message": "must be less"},
        {"field": "spec.template.spec.containers[0].securityContext.capabilities", "message": "no"},
        {"field": "spec.template.metadata.labels", "message": "name part must consist of"},
    ]
    assert explain_refused_job(InvalidError("create jobs", 422, "Invalid", "all of it", causes)) == (
        "spec.podTemplate.env.name: Invalid value; spec.podTemplate.tolerations[0].operator: Invalid value; "
        "spec.resources.requests[memory]: must be less; "
        "spec.podTemplate.containerSecurityContext.capabilities: no; "
        "spec.podTemplate.labels: name part must consist of. Correct it in a new FineTuneJob"
    )
    assert explain_refused_job(InvalidError("create jobs", 422, "Invalid", "all of it", [])).startswith(
        "spec: all of it."
    )
