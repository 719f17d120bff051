"""What spec.podTemplate may ask for, by what the administrator allows."""

from dataclasses import replace
from typing import Any

import pytest

from finetune_api.finetunejob import ModelCache, PodTemplate
from finetune_operator.policies.pod_policy import LEVELS, list_cache_refusals, list_refusals
from finetune_operator.settings import Settings
from tests.operator.fake_cluster import SETTINGS, FakeCluster, running, terminated
from tests.operator.locked_down import POD_TEMPLATE
from tools.testing.operator_messages import PREFLIGHT_PASSED, SPEC


def refused(template: dict[str, Any], **settings: Any) -> list[str]:
    return list_refusals(PodTemplate.model_validate(template), replace(SETTINGS, **settings))


def volume(**source: Any) -> dict[str, Any]:
    return {"volumes": [{"name": "a", "emptyDir": {}}, {"name": "b", **source}]}


CASES: list[tuple[dict[str, Any], str, str, str]] = [
    ({"hostNetwork": True}, "hostNetwork", "true", "privileged"),
    ({"hostIPC": True}, "hostIPC", "true", "privileged"),
    ({"hostPID": True}, "hostPID", "true", "privileged"),
    ({"securityContext": {"runAsUser": 0}}, "securityContext.runAsUser", "0", "baseline"),
    ({"securityContext": {"runAsNonRoot": False}}, "securityContext.runAsNonRoot", "false", "baseline"),
    (
        {"securityContext": {"seccompProfile": {"type": "Unconfined"}}},
        "securityContext.seccompProfile.type",
        "Unconfined",
        "privileged",
    ),
    (
        {"securityContext": {"appArmorProfile": {"type": "Unconfined"}}},
        "securityContext.appArmorProfile.type",
        "Unconfined",
        "privileged",
    ),
    (
        {"securityContext": {"seLinuxOptions": {"type": "spc_t"}}},
        "securityContext.seLinuxOptions.type",
        "spc_t",
        "privileged",
    ),
    (
        {"securityContext": {"seLinuxOptions": {"user": "system_u"}}},
        "securityContext.seLinuxOptions.user",
        "system_u",
        "privileged",
    ),
    ({"containerSecurityContext": {"privileged": True}}, "containerSecurityContext.privileged", "true", "privileged"),
    (
        {"containerSecurityContext": {"allowPrivilegeEscalation": True}},
        "containerSecurityContext.allowPrivilegeEscalation",
        "true",
        "baseline",
    ),
    (
        {"containerSecurityContext": {"capabilities": {"add": ["CHOWN"]}}},
        "containerSecurityContext.capabilities.add",
        "CHOWN",
        "baseline",
    ),
    (
        {"containerSecurityContext": {"capabilities": {"add": ["NET_BIND_SERVICE", "SYS_ADMIN"]}}},
        "containerSecurityContext.capabilities.add",
        "SYS_ADMIN",
        "privileged",
    ),
    (
        {"containerSecurityContext": {"capabilities": {"drop": ["NET_RAW"]}}},
        "containerSecurityContext.capabilities.drop",
        "['NET_RAW']",
        "baseline",
    ),
    (volume(nfs={"server": "nas", "path": "/data"}), "volumes[1].nfs", "nas:/data", "baseline"),
    (
        {"annotations": {"container.apparmor.security.beta.kubernetes.io/trainer": "unconfined"}},
        "annotations[container.apparmor.security.beta.kubernetes.io/trainer]",
        "unconfined",
        "privileged",
    ),
]


@pytest.mark.parametrize(("template", "field", "value", "level"), CASES, ids=[f"{c[1]} {c[2]}" for c in CASES])
def test_a_privilege_needs_its_standard(template: dict[str, Any], field: str, value: str, level: Any) -> None:
    below = LEVELS[LEVELS.index(level) - 1]
    (message,) = refused(template, pod_security_standard=below)
    assert message.startswith(f"spec.podTemplate.{field}: found {value}, which the Pod Security Standard {below} does")
    assert message.endswith(f"trainer.podPolicy.securityStandard={level}")
    assert refused(template, pod_security_standard=level) == []


def test_what_a_locked_down_cluster_needs_is_allowed_everywhere() -> None:
    assert refused(POD_TEMPLATE) == []


@pytest.mark.parametrize(
    ("path", "allowed", "is_refused"),
    [
        ("/data", (), True),
        ("/data", ("/data",), False),
        ("/data/texts", ("/data/",), False),
        ("/database", ("/data",), True),
        ("/etc", ("/data", "/etc"), False),
        ("/anything", ("/",), False),
    ],
)
def test_a_path_of_the_node_must_be_below_one_that_is_allowed(
    path: str, allowed: tuple[str, ...], is_refused: bool
) -> None:
    messages = refused(volume(hostPath={"path": path}), pod_host_paths=allowed, pod_security_standard="privileged")
    assert bool(messages) is is_refused
    for message in messages:
        assert message.startswith(f"spec.podTemplate.volumes[1].hostPath: found {path}, and the node's paths")
        assert message.endswith("trainer.podPolicy.hostPaths")


@pytest.mark.parametrize(
    ("name", "allowed", "is_refused"),
    [
        ("default", (), False),
        ("admin", (), True),
        ("trainer", ("trainer",), False),
        ("finetune-a", ("finetune-*",), False),
        ("trainer-2", ("trainer",), True),
        ("anything", ("*",), False),
    ],
)
def test_a_service_account_must_be_allowed(name: str, allowed: tuple[str, ...], is_refused: bool) -> None:
    messages = refused({"serviceAccountName": name}, pod_service_accounts=allowed)
    assert bool(messages) is is_refused
    for message in messages:
        assert message.startswith(f"spec.podTemplate.serviceAccountName: found {name}, allowed: default")
        assert message.endswith("trainer.podPolicy.serviceAccountNames")


def test_a_refused_template_makes_no_pod_and_says_all_that_is_wrong() -> None:
    cluster = FakeCluster({**SPEC, "podTemplate": {"hostNetwork": True, "serviceAccountName": "admin"}})
    cluster.settle()
    assert cluster.created == []
    assert cluster.condition("Accepted") == ("False", "SpecInvalid")
    assert "hostNetwork" in cluster.message("Accepted")
    assert "serviceAccountName" in cluster.message("Accepted")


def test_a_policy_that_becomes_stricter_stops_what_is_new_and_follows_what_runs() -> None:
    cluster = FakeCluster({**SPEC, "podTemplate": {"hostNetwork": True}})
    cluster.settings = replace(SETTINGS, pod_security_standard="privileged")
    cluster.settle()
    cluster.set_pod(terminated(0, PREFLIGHT_PASSED))
    cluster.settle()
    cluster.set_pod(running())
    cluster.settle()
    cluster.settings = SETTINGS
    cluster.settle()
    assert cluster.condition("Running") == ("True", "Training")
    cluster.set_pod(terminated(40, {"kind": "TrainerResult", "reason": "Preempted", "message": "x"}, deleted=True))
    cluster.settle()
    assert cluster.condition("Accepted") == ("False", "SpecInvalid")
    assert cluster.created == ["a-preflight", "a-train-1"]


@pytest.mark.parametrize(
    ("variables", "field", "value"),
    [
        ({"POD_SECURITY_STANDARD": "baseline"}, "pod_security_standard", "baseline"),
        ({"POD_HOST_PATHS": "/data, /models"}, "pod_host_paths", ("/data", "/models")),
        ({"POD_SERVICE_ACCOUNTS": "trainer"}, "pod_service_accounts", ("trainer",)),
    ],
)
def test_the_policy_is_a_setting(variables: dict[str, str], field: str, value: object) -> None:
    environment = {"TRAINER_IMAGE": "a", "OPERATOR_IMAGE": "b", **variables}
    settings = Settings.of({f"FINETUNE_OPERATOR_{name}": text for name, text in environment.items()})
    assert getattr(settings, field) == value


def test_a_model_cache_on_the_node_is_for_the_administrator_to_allow() -> None:
    cache = ModelCache.model_validate({"hostPath": {"path": "/mnt/models/team"}})
    (refusal,) = list_cache_refusals(cache, SETTINGS)
    assert refusal.startswith("spec.model.cache.hostPath: found /mnt/models/team, and the node's paths are not allowed")
    assert "trainer.podPolicy.hostPaths" in refusal
    assert list_cache_refusals(cache, replace(SETTINGS, pod_host_paths=("/mnt/models",))) == []
    assert list_cache_refusals(ModelCache.model_validate({"persistentVolumeClaim": {"claimName": "a"}}), SETTINGS) == []
